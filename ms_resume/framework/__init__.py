"""The port to MindSpore: the only place that imports it, inside functions, so that a login node needs none."""
