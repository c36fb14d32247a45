"""Whether the campaign would notice: each of `mutations.MUTANTS` must make a part of it fail.

A mutant is a copy of the package with one text replaced, first on PYTHONPATH of a narrow run of the campaign. The same
run must pass on a copy without a change, so that it is the mutant that made it fail.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import ms_resume
from faults import cases
from faults.cases import Tally
from faults.mutations import MUTANTS, Look, Mutant

if TYPE_CHECKING:
    from faults.campaign import Plan

PACKAGE = Path(ms_resume.__file__).parent
WIDER = ("power_model", "dying", "interleaving", "failing", "two_writers")
"""Asked of a mutant that its own looks do not catch."""
_ENDS_AFTER_S = 900


def run(plan: Plan) -> Tally:
    tally = Tally("mutants", "mutants")
    chosen = plan.draw(MUTANTS)
    with ThreadPoolExecutor(plan.jobs) as pool:
        for failure in pool.map(check, chosen):
            tally.add(failure)
    return tally
