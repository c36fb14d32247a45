"""Says why an attempt ended: evidence and a table of rules in, a failure out. Reads nothing while it does so."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ms_resume.errors import UsageError
from ms_resume.supervisor.evidence import Evidence, Failure

OWN = Path(__file__).with_name("rules.yaml")
LOST = "hccl_timeout"
"""The class of a rank that lost another one: what it says is a consequence."""

ELSEWHERE = "elsewhere"
"""The class of a part that was ended because another node's part had failed."""

VERDICTS = ("restart", "once", "stop", "leave", "done")
_PATTERNS = ("error", "message", "log")
_FLAGS = ("hang", "oom_kill", "left", "done", "asked", "elsewhere", "scheduler", "words", "rank")
_CHOICES = ("exit_code", "phase")
_SHOWN = 5
_LONGEST_DETAIL = 200


@dataclass(frozen=True, slots=True)
class Rule:
    kind: str
    then: str
    says: str
    when: tuple[Mapping[str, Any], ...]
    """Conditions: all of one mapping must hold."""


def read(site: Path | None = None) -> list[Rule]:
    """The rules of a site, then our own.

    Raises:
        UsageError: A file is not there, or not a table of rules; the message names the entry.
    """
    return [*(_load(site) if site else []), *_load(OWN)]


def classify(evidence: Evidence, rules: Sequence[Rule]) -> Failure:
    """The class of the first rule that fits, with the rank that failed first and the lines that show it."""
    first = evidence.first
    for rule in rules:
        for condition in rule.when:
            if _fits(condition, evidence):
                return Failure(
                    kind=rule.kind,
                    then=rule.then,
                    says=rule.says,
                    rank=first.rank if first else None,
                    node=(first.host if first else "") or evidence.node,
                    exit_code=first.error.get("exit_code", first.exit_code) if first else evidence.launcher_code,
                    detail=_detail(evidence),
                    lines=_shown(condition, evidence),
                )
    raise AssertionError("the last of our own rules fits everything")


def _fits(condition: Mapping[str, Any], evidence: Evidence) -> bool:
    return all(_holds(name, wanted, evidence) for name, wanted in condition.items())


def _holds(name: str, wanted: Any, evidence: Evidence) -> bool:
    first = evidence.first
    error = first.error if first else {}
    if name == "error":
        kinds = [error.get("error", ""), *error.get("kinds", ())]
        return any(re.fullmatch(wanted, kind) for kind in kinds)
    if name == "message":
        return re.search(wanted, error.get("message", "")) is not None
    if name == "log":
        return any(re.search(wanted, line) for line in _lines(evidence))
    if name == "exit_code":
        return (first.exit_code if first else evidence.launcher_code) in _listed(wanted)
    if name == "phase":
        return first is not None and first.phase in _listed(wanted)
    facts = {
        "hang": bool(evidence.hang),
        "oom_kill": evidence.oom_kills > 0,
        "left": evidence.left,
        "done": evidence.done,
        "asked": evidence.asked,
        "elsewhere": bool(evidence.elsewhere),
        "scheduler": evidence.scheduler,
        "words": first is not None and first.outcome is not None,
        "rank": first is not None,
    }
    return facts[name] is wanted


def _listed(wanted: Any) -> list[Any]:
    return wanted if isinstance(wanted, list) else [wanted]


def _lines(evidence: Evidence) -> Iterable[str]:
    """What was said, nearest to the fault first: the error, the rank's log, the launcher's."""
    first = evidence.first
    if first:
        yield from str(first.error.get("message", "")).splitlines()
        yield from first.error.get("traceback", ())
        yield from first.log
    yield from evidence.launcher_log


def _shown(condition: Mapping[str, Any], evidence: Evidence) -> tuple[str, ...]:
    """The lines that made the rule fit, or the last that were said."""
    if evidence.hang or evidence.elsewhere:
        return (evidence.hang or evidence.elsewhere,)
    if "log" in condition:
        found = [line for line in _lines(evidence) if re.search(condition["log"], line)]
        return tuple(dict.fromkeys(found))[:_SHOWN]
    said = [line for line in _lines(evidence) if line.strip(" =-")]
    message = str(evidence.first.error.get("message", "")) if evidence.first else ""
    return tuple(message.splitlines()[:_SHOWN]) if message else tuple(said[-_SHOWN:])


def _detail(evidence: Evidence) -> str:
    """Equal for the same thing happening again: no pids, times or addresses."""
    first = evidence.first
    if first is None:
        return ""
    lines = str(first.error.get("message", "")).splitlines()
    said = f"{first.error.get('error', '')}: {lines[0] if lines else ''}" if first.error else f"exit {first.exit_code}"
    return re.sub(r"0x[0-9a-f]+|\d{5,}", "N", said)[:_LONGEST_DETAIL]


def _load(path: Path) -> list[Rule]:
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", hint="check --rules") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not YAML: {str(error).splitlines()[0]}", hint="correct the file") from None
    if not isinstance(entries, list):
        raise UsageError(f"{path}: expected a list of rules", hint=f"see {OWN} for the form")
    return [_rule(entry, f"{path}, rule {number}") for number, entry in enumerate(entries, start=1)]


def _rule(entry: Any, where: str) -> Rule:
    if not isinstance(entry, dict) or not {"class", "then", "when"} <= entry.keys():
        raise UsageError(f"{where}: expected class, then and when, found {entry!r:.80}", hint=f"see {OWN} for the form")
    if entry["then"] not in VERDICTS:
        raise UsageError(f"{where}: then is {entry['then']!r}", hint=f"use one of {', '.join(VERDICTS)}")
    when = entry["when"] if isinstance(entry["when"], list) else [entry["when"]]
    for condition in when:
        _check(condition, where)
    return Rule(str(entry["class"]), entry["then"], str(entry.get("says", "")), tuple(when))


def _check(condition: Any, where: str) -> None:
    known = (*_PATTERNS, *_FLAGS, *_CHOICES)
    if not isinstance(condition, dict):
        raise UsageError(f"{where}: when is {condition!r:.80}", hint="write `when: {log: 'PATTERN'}`")
    for name, wanted in condition.items():
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise UsageError(f"{where}: unknown condition {name!r}", hint=f"did you mean {nearest}?")
        if name in _FLAGS and not isinstance(wanted, bool):
            raise UsageError(f"{where}: {name} is {wanted!r}", hint="use true or false")
        if name in _PATTERNS:
            try:
                re.compile(wanted)
            except (re.error, TypeError) as error:
                raise UsageError(f"{where}: {name} is {wanted!r}: {error}", hint="correct the pattern") from None
