"""A stand-in: see `resume_ckpt`."""
