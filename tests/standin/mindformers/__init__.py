"""A stand-in for MindFormers: as much of it as MindRLHF's resume uses, with the defects that it has.

Written from a description of what its code does, not from its code.
"""

from __future__ import annotations

import logging

logger = logging.getLogger("mindformers")
