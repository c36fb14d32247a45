"""What rank 0 says at the start: what was found, what was passed over and why, what is restored from where."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ms_resume.records import Position, Rejection

_WIDTH = 78


@dataclass(frozen=True, slots=True)
class Story:
    """The facts of one start. `source` is None for a fresh start."""

    save: Path
    attempt: str
    position: Position
    source: Path | None = None
    layout: str = ""
    from_attempt: str | None = None
    rejected: Sequence[Rejection] = ()
    restored: Sequence[str] = ()
    anew: Sequence[str] = ()
    unsaved: Sequence[str] = ()
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    fresh_allowed: bool = False
    asked: Sequence[str] = ()
    """The flags that chose this start, as they were given; `strategy` is what they led to where there was a choice
    between an iteration model and a checkpoint."""

    strategy: Sequence[str] = ()

    weights: str = ""
    """Where weights came from, if not from `source`; `placed` are the lines that say what was taken."""

    placed: Sequence[str] = ()
    seconds: float = 0.0
    bytes: int = 0


def text(story: Story) -> str:
    rule = "=" * _WIDTH
    return "\n".join([rule, *_lines(story), rule])


def _lines(story: Story) -> list[str]:
    lines = [_headline(story), f"  attempt {story.attempt} writes to {story.save}"]
    if story.asked:
        lines.append(f"  asked for: {' '.join(story.asked)}")
    lines += [f"  {line}" for line in story.strategy]
    lines += [f"  passed over {r.position}: {r.kind}: {r.reason}" for r in story.rejected]
    if story.restored:
        rate = f" ({story.bytes / 2**20:.1f} MiB in {story.seconds:.2f} s)" if story.bytes else ""
        lines.append(f"  restored and verified{rate}: {', '.join(story.restored)}")
    lines += [f"  {line}" for line in story.placed]
    if story.anew:
        lines.append(f"  starts anew, the checkpoint has nothing for it: {', '.join(story.anew)}")
    if story.unsaved:
        lines.append(f"  starts anew at each resume, no component saves it: {'; '.join(story.unsaved)}")
    if left := [r for r in story.rejected if r.kind == "left behind" and story.source == story.save]:
        position = left[0].position
        back = f"`ms-resume restore {shlex.quote(str(story.save))} {position}`"
        lines.append(f"  note: {back} brings back what is left behind")
    lines += [f"  note: {note}" for note in story.notes]
    lines += [f"  warning: {warning}" for warning in story.warnings]
    return lines


def _headline(story: Story) -> str:
    if story.source is None and story.weights:
        return f"ms_resume: WARM START from {story.weights}"
    if story.source is None:
        why = "a fresh start was allowed" if story.fresh_allowed else "nothing here was ever a whole checkpoint"
        return f"ms_resume: FRESH START: {why}"
    kind = "ours" if story.from_attempt else "stock MindRLHF's"
    by = f", attempt {story.from_attempt}" if story.from_attempt else ""
    return f"ms_resume: RESUMING at {story.position} from {story.source} ({kind}, layout {story.layout}{by})"
