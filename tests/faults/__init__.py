"""The fault campaign: dying, failing, racing and losing power at every point of a save, and looking what is left.

`python -m faults` (from the tests directory, or `make faults`) runs it and prints counts; docs/durability.md says what
each part proves. Each module is one kind of fault. The product's own code runs in all of them, on NumPy state, in
processes of their own.
"""
