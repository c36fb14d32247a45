"""The save directory: how its names are spelt, its files are encoded, and the one door through which it is written."""
