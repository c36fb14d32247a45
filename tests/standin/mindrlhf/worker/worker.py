"""What the workers share: the list of calls that a test reads."""

from __future__ import annotations


class Worker:
    def __init__(self, grpo_config):
        self.grpo_config = grpo_config
        self.calls = vars(grpo_config).setdefault("calls", [])
