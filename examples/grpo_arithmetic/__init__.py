"""A small real GRPO training that shows what a trainer has to do to be resumed bit for bit."""
