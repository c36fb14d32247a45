"""The exactness campaign: runs that are killed again and again, compared bit for bit with runs that nobody disturbed.

    python -m exact [--kills N] [--ranks N] [--only SETTING] [--seed N]      or `make exact`

`tiny.py` is a trainer that uses every component at once, `settings.py` what it is run with, `chain.py` kills it and
starts it again, `campaign.py` counts; `ranks.py` does it to workers of msrun.
"""
