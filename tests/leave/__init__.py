"""The leaving campaign: runs that are asked to leave again and again, compared bit for bit with runs that nobody asked.

    python -m leave [--signals N] [--ranks N] [--only SETTING] [--seed N]      or `make leave`

The trainers, the settings and the comparison are those of `exact`. `chain.py` asks single processes, `ranks.py` one
worker of msrun, which has to tell the others.
"""
