"""One case: a tree is damaged once, and looked at as `ms-resume locate --deep` does."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from damage import kinds, trees
from damage.trees import Changes, Tree, Whole
from ms_resume import locate, verify
from ms_resume.errors import Damaged
from ms_resume.ondisk import meta, names
from ms_resume.records import Checkpoint, Located, Rejection

TREES: dict[str, Tree] = {}
"""By name: a case that goes to another process does not carry its tree."""


@dataclass(frozen=True)
class Case:
    """One damage, the same each time for one seed."""

    tree: str
    kind: str
    number: int
    seed: int

    def __str__(self) -> str:
        return f"{self.tree}: {self.kind}, {self.number}"

    def draw(self) -> Changes:
        """Until there is a difference; some trees have none of a kind."""
        tree, damage = TREES[self.tree], kinds.ALL[self.kind]
        chance = random.Random(f"{self.seed} {self}")
        for _ in range(20):
            changes = damage(tree, trees.standing(tree)[1], chance)
            if differing := {path: new for path, new in changes.items() if tree.files.get(path) != new}:
                return differing
        return {}


def deep(checkpoint: Checkpoint) -> Rejection | None:
    return verify.rejection(checkpoint, verify.check(checkpoint, deep=True))


@contextmanager
def damaged(tree: Tree, changes: Changes) -> Iterator[Path]:
    """The tree on disk with these changes, which are taken back afterwards."""
    directory, _ = trees.standing(tree)
    trees.change(directory, {path: content for path, content in changes.items() if content is not None})
    trees.change(directory, {path: None for path, content in changes.items() if content is None})
    try:
        yield directory
    finally:
        for path in changes:
            if path in tree.files:
                trees.change(directory, {path: tree.files[path]})
            else:
                (directory / path).unlink(missing_ok=True)


def check(case: Case) -> tuple[str, str]:
    """How the case ended (`found`, `no damage`, or `not drawn`), and what is wrong with that."""
    tree, changes = TREES[case.tree], case.draw()
    if not changes:
        return "not drawn", ""
    with damaged(tree, changes) as directory:
        ended, wrong = _judged(tree, trees.standing(tree)[1], changes, directory)
    listed = ", ".join(changes)
    return ended, f"{case} ({listed}): {wrong}" if wrong else ""


def _judged(tree: Tree, whole: Whole, changes: Changes, directory: Path) -> tuple[str, str]:
    try:
        located = locate.latest(directory, check=deep)
    except Damaged as error:
        return "found", "" if _named(error.message, (), changes) else f"not named in {error.message!r}"
    except Exception as error:  # noqa: BLE001  # whatever it is, it is this case's failure
        return "found", f"an error that is not Damaged: {error!r}"
    taken = located.checkpoint
    if wrong := taken and _wrongly(tree, whole, changes, taken):
        return "passed", wrong
    if taken and taken.position == whole.taken.position:
        return "no damage", _silent(tree, changes, located, directory)
    said = next((one for one in located.rejected if one.position == whole.taken.position), None)
    if said is None:
        return "found", f"{whole.taken.position} is not taken, and nothing is said of it"
    named = _named(said.reason, said.ranks, changes) or (said.attempt != whole.taken.attempt and said.attempt)
    return "found", "" if named else f"not named in {said}"


def _wrongly(tree: Tree, whole: Whole, changes: Changes, taken: Checkpoint) -> str:
    """Why `taken` must not be taken: it never was whole, or reads a file that says something else now."""
    if (taken.position, taken.attempt) not in whole.whole:
        return f"{taken.position} of attempt {taken.attempt} is taken"
    was = whole.taken if taken.position == whole.taken.position else taken
    names_now = dict(zip(trees.read_by(taken), trees.read_by(was), strict=True))
    for path, before in names_now.items():
        content = changes.get(path, tree.files.get(path))
        if content != tree.files[before] and not _same(whole, before, content, tree.files[before], taken.save):
            return f"{taken.position} is taken, although {path} is not what it was"
    return ""


def _same(whole: Whole, path: str, now: bytes | None, before: bytes, directory: Path) -> bool:
    """Whether a resume takes the same from both. What our votes name is the same only to the byte."""
    if now is None or (whole.votes and not path.startswith("commits/")):
        return False
    try:
        return trees.meaning(path, now, directory) == trees.meaning(path, before, directory)
    except (Damaged, ValueError):
        return False


def _silent(tree: Tree, changes: Changes, located: Located, directory: Path) -> str:
    """A broken `meta.json` of a stock directory harms no resume here, but one of stock code: it is a warning."""
    assert located.checkpoint is not None
    said = "\n".join(located.warnings)
    for path in changes:
        hint = re.fullmatch(rf"((?:train|optimizer)/rank_\d+)/{names.META}", path)
        if hint and located.checkpoint.layout == "mindrlhf":
            read = meta.read(directory / hint[1])
            if (read.trouble or read.position != located.checkpoint.position) and path not in said:
                return f"no warning of {path}, which says {read}"
    return ""


def _named(message: str, ranks: tuple[int, ...], changes: Changes) -> bool:
    for path in changes:
        rank = re.search(r"rank_(\d+)", path)
        if path in message or (rank and (int(rank[1]) in ranks or re.search(rf"\brank {rank[1]}\b", message))):
            return True
    return False
