"""A share of the damage campaign, drawn anew each day; the whole of it is `make damage`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from damage import campaign, kinds, wholes

HERE = Path(__file__).parent
SHARE = 5
TREES = 6
"""Of each sort: 1, 2 and 3 ranks in two formats."""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "damage", *arguments]
    return subprocess.run(
        command, cwd=HERE, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def cases(of: Mapping[str, kinds.Kind]) -> int:
    return TREES * campaign.PER_KIND * sum(kinds.WEIGHTS.get(kind, 1) for kind in of)


def test_a_share_of_the_campaign() -> None:
    """Every damage is found and named, no whole checkpoint raises an alarm, and the seed is printed."""
    seed = os.environ.get("DAMAGE_SEED", str(date.today().toordinal()))
    print(f"again: cd tests && python -m damage --share {SHARE} --seed {seed}")
    ended = run("--share", str(SHARE), "--seed", seed, "--json")
    print(ended.stderr)

    assert ended.returncode == 0
    tallies: list[dict[str, Any]] = json.loads(ended.stdout)
    assert [tally["failures"] for tally in tallies] == [[]] * len(campaign.PARTS)
    assert all(tally["cases"] or tally["skipped"] for tally in tallies)
    assert tallies[0]["notes"]["found"] > 0.9 * SHARE / 100 * cases(kinds.OURS)


def test_the_size_of_the_campaign() -> None:
    """Pinned: at least so many damages of what has digests or a CRC, and so many whole ones."""
    assert cases(kinds.OURS) + cases(kinds.STOCK) > 12_000
    assert wholes.OF_OURS + wholes.OF_STOCK == 1000


def test_the_table_says_what_is_damaged() -> None:
    """docs/durability.md promises for each kind and layout exactly what the campaign holds it to."""
    text = (HERE.parent / "docs" / "durability.md").read_text()
    rows = re.findall(r"^\|([^|\n]+)\|([^|\n]+)\|([^|\n]+)\|([^|\n]+)\|$", text.partition("## What is found")[2], re.M)
    promised = [{row[0].strip() for row in rows[2:] if row[column].strip() not in ("-", "no")} for column in (1, 2, 3)]

    assert promised == [set(kinds.OURS), set(kinds.STOCK), set(kinds.PLAIN)]


@pytest.mark.parametrize(
    ("file", "there", "part", "said"),
    [
        ("ondisk/seal.py", "if found != document[KEY]:", "ours", "a value of a vote"),
        ("verify.py", "if header.digest != expected.digest:", "ours", "is not what it was"),
    ],
)
def test_a_failure_is_told_and_ends_in_1(file: str, there: str, part: str, said: str, tmp_path: Path) -> None:
    """A package without one of its checks: the campaign says which damage is believed then."""
    shutil.copytree(HERE.parent / "ms_resume", tmp_path / "ms_resume")
    broken = tmp_path / "ms_resume" / file
    text = broken.read_text()
    assert there in text
    broken.write_text(text.replace(there, "if False:"))
    ended = run("--only", part, "--share", "5", "--seed", "1", PYTHONPATH=f"{tmp_path}{os.pathsep}{HERE}")

    assert ended.returncode == 1
    assert said in ended.stdout
