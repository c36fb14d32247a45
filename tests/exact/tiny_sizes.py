"""How large the tiny run is; apart, so that whoever kills it needs no MindSpore."""

from __future__ import annotations

SAMPLES, BATCH, EPOCHS, INPUTS, TOKENS = 67, 4, 5, 5, 6
STEPS_PER_EPOCH = SAMPLES // BATCH
SAVE_EVERY = 4
"""No multiple of `ACCUMULATE`: saves come in the middle of a sum."""
ACCUMULATE = 3
EVALUATE_EVERY = 5
SEED = 11
