"""Names are parsed as a whole, so that nothing that only looks like a checkpoint is taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from ms_resume.ondisk import names
from ms_resume.records import Position

SAVE = Path("save")
ATTEMPT = "000003-0123456789abcdef"


@pytest.mark.parametrize(
    ("name", "prefix", "rank", "position", "file_format"),
    [
        ("policy_model_rank_0-0_5.safetensors", "policy_model", 0, (0, 5), "safetensors"),
        ("optimizer_rank_12-3_400.ckpt", "optimizer", 12, (3, 400), "ckpt"),
        ("my-model_rank_1-0_2_rank_0-3_2.safetensors", "my-model_rank_1-0_2", 0, (3, 2), "safetensors"),
        ("ref_rank_0-10_500.safetensors", "ref", 0, (10, 500), "safetensors"),
    ],
)
def test_payload_names(name: str, prefix: str, rank: int, position: tuple[int, int], file_format: str) -> None:
    """Prefix, rank, position, format; a prefix may hold dashes, and even what looks like a rank."""
    assert names.parse_payload(name) == names.PayloadName(prefix, rank, Position(*position), file_format)


@pytest.mark.parametrize(
    "name",
    [
        "policy_model_rank_0-0_15.tmp",
        "policy_model_rank_0-0_15.safetensors.tmp",
        "policy_model_rank_0-0_15.safetensors~",
        "policy_model_rank_0-0_15.safetensors\n",
        " policy_model_rank_0-0_15.safetensors\n",
        "policy_model_rank_00-0_15.safetensors",
        "policy_model_rank_0-0_15.safetensors.superseded-000003-0123456789abcdef",
        f".policy_model_rank_0-0_15.safetensors.{ATTEMPT}.part",
        "policy_model_rank_0-0_\u0665.safetensors",
        "policy_model_rank_0--1_5.safetensors",
        "policy_model_rank_0-0_05.safetensors",
        "policy_model_rank_0-0_" + "1" * 19 + ".safetensors",
        "policy_model_rank_0-0_" + "1" * 5000 + ".safetensors",
        "policy_model_rank_0-0_5",
        "_rank_0-0_5.safetensors",
        "meta.json",
        "step-300.tmp-old",
        "",
    ],
)
def test_names_that_only_look_like_payloads(name: str) -> None:
    """Temp files, backups, files renamed aside, other digits, a newline at the end: none is a payload."""
    assert names.parse_payload(name) is None


@pytest.mark.parametrize("role", list(names.DIRECTORIES))
@pytest.mark.parametrize("file_format", names.FORMATS)
def test_payloads_are_spelt_as_they_are_parsed(role: str, file_format: str) -> None:
    """What is written is what is found again."""
    path = names.payload(SAVE, role, 7, Position(2, 30), file_format)

    assert path.parent == names.rank_dir(SAVE, role, 7)
    assert names.parse_payload(path.name) == names.PayloadName(names.PREFIXES[role], 7, Position(2, 30), file_format)


@pytest.mark.parametrize(
    ("path", "role", "known"),
    [
        ("train/rank_7/policy_model_rank_7-2_30.safetensors", "policy", True),
        ("ref/rank_7/ref_rank_7-2_30.ckpt", "ref", True),
        ("train/rank_7/policy_model_rank_7-2_30.safetensors", "optimizer", False),
        ("train/rank_7/policy_model_rank_8-2_30.safetensors", "policy", False),
        ("train/rank_7/ref_rank_7-2_30.safetensors", "policy", False),
        ("./train/rank_7/policy_model_rank_7-2_30.safetensors", "policy", False),
        ("/train/rank_7/policy_model_rank_7-2_30.safetensors", "policy", False),
        ("policy_model_rank_7-2_30.safetensors", "policy", False),
        ("train/rank_7/policy_model_rank_7-2_30.safetensors", "rollouts", False),
    ],
)
def test_paths_of_payloads(path: str, role: str, known: bool) -> None:
    """In the place that the tree has for them, spelt in one way."""
    assert names.parse_payload_path(path, role, 7) == (Position(2, 30) if known else None)
    assert names.parse_payload_path(path, role, 8) is None


@pytest.mark.parametrize(
    ("path", "stays"),
    [
        ("a/b", True),
        ("a..b", True),
        ("/a", False),
        ("../a", False),
        ("a/../b", False),
        ("a/..", False),
        ("a\0", False),
        ("a" * 256, False),
        ("a/" * 600, False),
    ],
)
def test_paths_that_stay_inside(path: str, stays: bool) -> None:
    """As far as a name tells."""
    assert names.stays_inside(path) == stays


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("rank_0", 0),
        ("rank_10", 10),
        ("rank_01", None),
        ("rank_", None),
        ("rank_0.bak", None),
        ("xrank_0", None),
        ("rank_-1", None),
        ("rank_0\n", None),
        (f"rank_{names.MOST_RANKS - 1}", names.MOST_RANKS - 1),
        (f"rank_{names.MOST_RANKS}", None),
        ("rank_" + "1" * 5000, None),
    ],
)
def test_rank_directories(name: str, rank: int | None) -> None:
    """Decimal, without padding, and nothing around it."""
    assert names.parse_rank_dir(name) == rank


@pytest.mark.parametrize(
    ("name", "position"),
    [
        ("0_5", Position(0, 5)),
        ("12_0", Position(12, 0)),
        ("0_05", None),
        ("0_5.tmp", None),
        ("0_5.deleted-" + ATTEMPT, None),
        ("attempts", None),
        ("step-300.tmp-old", None),
        ("0_5\n", None),
    ],
)
def test_vote_directories(name: str, position: Position | None) -> None:
    """A directory that was renamed away in any manner holds no votes."""
    assert names.parse_vote_dir(name) == position


def test_a_deleted_directory_is_known_again() -> None:
    """By position, whichever attempt deleted it."""
    deleted = names.deleted_dir(SAVE, Position(0, 5), ATTEMPT)

    assert names.parse_deleted_dir(deleted.name) == Position(0, 5)
    assert names.parse_deleted_dir("0_5") is None
    assert names.parse_deleted_dir("0_5.deleted-by-hand") is None
    assert names.parse_deleted_dir(deleted.name + "~") is None


def test_temp_files_are_known_again_and_never_taken_for_checkpoints() -> None:
    """Hidden, and with an ending that no checkpoint has."""
    final = names.payload(SAVE, "policy", 0, Position(0, 5))
    part = names.part(final, ATTEMPT)

    assert names.parse_part(part.name) == (final.name, ATTEMPT)
    assert part.parent == final.parent
    assert part.name.startswith(".")
    assert part.suffix not in (".ckpt", ".safetensors")
    assert names.parse_part(f".{final.name}.tmp") is None
    assert names.parse_part(f".{final.name}.000003-XYZ.part") is None


@pytest.mark.parametrize(
    ("name", "ordinal"),
    [
        ("000001.json", 1),
        ("1234567.json", 1234567),
        ("1.json", None),
        ("000001.json.tmp", None),
        ("1" * 18 + ".json", int("1" * 18)),
        ("1" * 19 + ".json", None),
        ("000001.heartbeat", None),
    ],
)
def test_attempt_records(name: str, ordinal: int | None) -> None:
    """Six digits and more."""
    assert names.parse_attempt_record(name) == ordinal


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("rank_3.json", 3),
        ("rank_03.json", None),
        (".rank_3.json." + ATTEMPT + ".part", None),
        ("rank_3.json.bak", None),
    ],
)
def test_votes(name: str, rank: int | None) -> None:
    """A vote counts under its own name only."""
    assert names.parse_vote(name) == rank
