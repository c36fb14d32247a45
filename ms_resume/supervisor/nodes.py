"""How the supervisors of a run's nodes agree: by files in a log directory that all of them see.

<LOG_DIR>/nodes/round                     node 0: the start that it calls, by the name of its attempt
<LOG_DIR>/nodes/NNNNNN-<token>/K.ready    node K: nothing is left of earlier attempts, all checks passed; what it sees
<LOG_DIR>/nodes/NNNNNN-<token>/go         node 0: all are ready, and see the same
<LOG_DIR>/nodes/NNNNNN-<token>/K.asked    node K: its supervisor was asked to end; all save and leave
<LOG_DIR>/nodes/NNNNNN-<token>/K.end      node K: how its part ended; where it failed, all others end theirs
<LOG_DIR>/nodes/NNNNNN-<token>/decision   node 0: what all do next
<LOG_DIR>/nodes/K.left                    node K: its supervisor was asked to end between two attempts; all leave

Node 0 decides, because no start works without it: msrun's scheduler runs there. Each file has one writer, is whole, and
stays; who needs it asks until it is there. So each supervisor may be killed and started again at any time, and a node
that is gone is waited for, until somebody starts its supervisor on another host.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import ms_resume
from ms_resume.errors import ExitCode, UsageError
from ms_resume.ondisk import atomic
from ms_resume.records import Position
from ms_resume.supervisor import files
from ms_resume.supervisor.evidence import Action
from ms_resume.supervisor.plan import Plan
from ms_resume.supervisor.rules import ELSEWHERE, LOST

_NAP_S = 0.3
_OTHERS_END_S = 120.0
"""So long after a failure the other nodes may take to say how their parts ended: they are ended at once."""

_VISIBLE_S = 15.0
"""So long a file of node 0 in the save directory may take to be seen on another one."""

_SUFFIXES = (".py", ".sh", ".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class Call:
    """A start that all nodes make."""

    name: str
    """Of the attempt, and its directory on each node."""
    back: Position | None = None
    again: bool = False
    """Not the first one of the run."""


class Nodes:
    """The other nodes, as one of them sees them."""

    def __init__(self, plan: Plan, *, shared: bool, asked: Callable[[], bool], say: Callable[[str], None]) -> None:
        """`shared` is False where each node saves on a disk of its own."""
        self._plan, self._shared, self._asked, self._say = plan, shared, asked, say
        self._at = plan.log_dir.parent / "nodes"
        self._others = [node for node in range(plan.nodes) if node != plan.node]
        self.leads = plan.node == 0
        atomic.make_dirs(self._at)
        self._earlier = self._left()
        """What nodes said that left an earlier run of these supervisors."""

    # -- between two attempts

    def told(self) -> bool:
        """Whether this supervisor was asked to end, or another node's was between two attempts."""
        return self._asked() or bool(self._leavers())

    def leave(self) -> str:
        """Tells the others, which would wait for this node, where they have not told it. Returns why it leaves."""
        if self._asked():
            self._put(self._at / f"{self._plan.node}.left", {"token": secrets.token_hex(8)})
            return "asked to end between two attempts"
        return f"{', '.join(f'node {node}' for node in self._leavers())}: asked to end between two attempts"

    def _leavers(self) -> list[int]:
        return [node for node, said in self._left().items() if said != self._earlier.get(node)]

    def _left(self) -> dict[int, dict[str, Any]]:
        listed = self._listed("")
        there = {node: self._at / f"{node}.left" for node in self._others if f"{node}.left" in listed}
        return {node: said for node, path in there.items() if (said := files.document(path)) is not None}

    # -- a start

    def agree(self, call: Call, over: set[str]) -> Call | None:
        """The start that all nodes make now: node 0's `call`. None where the supervisors are to end.

        Args:
            over: Names of attempts that this node had a part in.

        Raises:
            UsageError: A node is not there in time, or sees another save directory or other code than node 0.
        """
        return self._call(call) if self.leads else self._join(over)

    def _call(self, call: Call) -> Call | None:
        name, above = call.name, self._above() if self._shared else None
        token = None if above is None else self._token(above)
        atomic.make_dirs(self._at / name)
        if token is not None:
            atomic.replace(token, name.encode(), name)
        try:
            self._put(
                self._at / "round",
                {
                    "name": name,
                    "back": call.back.to_json() if call.back else None,
                    "again": call.again,
                    "above": above,
                },
            )
            views = self._wait(lambda: self._all(name, "ready"), f"for nodes to be ready: {self._others}")
            if views is None and self.told():
                return None
            if views is None:
                missing = [node for node in self._others if files.document(self._at / name / f"{node}.ready") is None]
                raise UsageError(
                    f"nodes {missing} are not ready after {self._plan.join_s:g} s",
                    hint="start the same line there, with its own --node; what keeps one from it is in its own log",
                )
            self._compare(views)
            if self.told():
                return None
        finally:
            if token is not None:
                atomic.remove(token)
        self._put(self._at / name / "go", {})
        return call

    def _join(self, over: set[str]) -> Call | None:
        ready: str | None = None

        def called() -> dict[str, Any] | None:
            nonlocal ready
            found = files.document(self._at / "round")
            if found is None or found["name"] in over:
                return None
            name = str(found["name"])
            if name != ready:
                if any(file == "decision" or file.endswith(".end") for file in self._listed(name)):
                    return None  # over before this node came
                self._put(self._at / name / f"{self._plan.node}.ready", self._view(found))
                ready = name
            return found if "go" in self._listed(name) else None

        found = self._wait(called, "for node 0 to call the next start")
        if found is None and self.told():
            return None
        if found is None:
            raise UsageError(
                f"node 0 has called no start in {self._plan.join_s:g} s ({self._at})",
                hint="start the same line on node 0; the log directory must be the same on all nodes",
            )
        return Call(str(found["name"]), files.position(found["back"]), bool(found["again"]))

    # -- while it runs, and after

    def failed_elsewhere(self, name: str) -> str:
        """Which other node's part of this attempt is over and was not done; empty while all is well."""
        listed = self._listed(name)
        for node in self._others:
            end = files.document(self._at / name / f"{node}.end") if f"{node}.end" in listed else None
            if end is not None and end["then"] not in ("done", "leave"):
                return f"node {node} ({end['host']}): {end['class']}"
        return "" if self._named() in (name, None) else "node 0 went on without this one"

    def asked(self, name: str, here: bool) -> bool:
        """Whether a supervisor was asked to end this attempt, `here` or on another node; here is told to the others."""
        listed = self._listed(name)
        if here and f"{self._plan.node}.asked" not in listed:
            self._put(self._at / name / f"{self._plan.node}.asked", {})
        return here or any(file.endswith(".asked") for file in listed)

    def ended(self, name: str, event: Mapping[str, Any]) -> None:
        """Tells the others how this node's part ended."""
        atomic.make_dirs(self._at / name)
        self._put(self._at / name / f"{self._plan.node}.end", {**event, "host": platform.node()})

    def merged(self, name: str, event: Mapping[str, Any]) -> dict[str, Any]:
        """On node 0: the whole attempt's end, once all parts have ended; on others their own."""
        if not self.leads:
            return dict(event)
        patience = self._plan.join_s if event["then"] in ("done", "leave") else _OTHERS_END_S
        what = f"for the parts of nodes {self._others} to end"
        # A node may have left when it was ready, and not seen that it was to go.
        self._wait(lambda: self._all(name, "end", without=self._leavers()), what, patience, asked_s=_OTHERS_END_S)
        parts = {node: files.document(self._at / name / f"{node}.end") for node in self._others}
        return merge(event, parts)

    def decided(self, name: str, action: Action) -> None:
        """Node 0 tells the others."""
        self._put(self._at / name / "decision", files.action_json(action))

    def decision(self, name: str) -> Action | None:
        """Node 0's. None where the supervisors are to end."""
        found: Action | None = self._wait(lambda: self._decision(name), "for node 0 to decide", asked_s=_OTHERS_END_S)
        if found is None and not self.told():
            why = f"node 0 has not decided in {self._plan.join_s:g} s"
            return Action("stop", why, exit_code=int(ExitCode.GAVE_UP))
        return found

    def _decision(self, name: str) -> Action | None:
        found = files.document(self._at / name / "decision")
        if found is not None:
            return Action(
                found["what"], found["reason"], found["delay_s"], files.position(found["back"]), found["exit_code"]
            )
        went_on = self._named() not in (name, None)
        return Action("restart", "node 0 went on without this one") if went_on else None

    # -- what nodes must agree about

    def _view(self, called: Mapping[str, Any]) -> dict[str, Any]:
        sees = called["above"] is None or self._sees(self._token(int(called["above"])), str(called["name"]))
        return {"host": platform.node(), "save": sees, **code(self._plan.same)}

    def _sees(self, token: Path, name: str) -> bool:
        deadline = time.monotonic() + min(_VISIBLE_S, self._plan.join_s / 4)
        while time.monotonic() < deadline and not self.told():
            try:
                if token.read_text() == name:
                    return True
            except OSError:
                pass
            time.sleep(_NAP_S)
        return False

    def _compare(self, views: Mapping[int, Mapping[str, Any]]) -> None:
        own = code(self._plan.same)
        for node, view in views.items():
            where = f"node {node} ({view['host']})"
            if not view["save"]:
                raise UsageError(
                    f"{where}: does not see the save directory of node 0, {self._plan.save}",
                    hint="mount the same file system there, or set MS_RESUME_STORAGE=local where each has its own disk",
                )
            for what, value in own.items():
                if view.get(what) != value:
                    raise UsageError(
                        f"{where}: {what} is {view.get(what)}, on node 0 {value}",
                        hint="bring all nodes to the same version, then start again",
                    )

    def _above(self) -> int:
        """How far above the save directory, which may not be there yet, a directory is: 0 for itself."""
        return next(n for n, path in enumerate((self._plan.save, *self._plan.save.parents)) if path.is_dir())

    def _token(self, above: int) -> Path:
        """A file that node 0 makes and the others look for, each by its own path."""
        return (self._plan.save, *self._plan.save.parents)[above] / ".ms_resume-nodes"

    # -- files

    def _named(self) -> str | None:
        found = files.document(self._at / "round")
        return None if found is None else str(found["name"])

    def _listed(self, name: str) -> set[str]:
        """The files of one start: one call however many nodes, and a network file system looks again for it."""
        try:
            return set(os.listdir(self._at / name))
        except FileNotFoundError:
            return set()

    def _all(self, name: str, kind: str, without: Sequence[int] = ()) -> dict[int, dict[str, Any]] | None:
        wanted = [node for node in self._others if node not in without]
        if not {f"{node}.{kind}" for node in wanted} <= self._listed(name):
            return None
        found = {node: files.document(self._at / name / f"{node}.{kind}") for node in wanted}
        there = {node: document for node, document in found.items() if document is not None}
        return there if len(there) == len(wanted) else None

    def _put(self, path: Path, content: Mapping[str, Any]) -> None:
        atomic.replace(path, json.dumps(content).encode(), f"node{self._plan.node}")

    def _wait(self, found: Callable[[], Any], what: str, patience_s: float | None = None, asked_s: float = 0) -> Any:
        """What `found` gives; None where it stays nothing, for `asked_s` at most where it is to end."""
        began, said = time.monotonic(), False
        patience_s = self._plan.join_s if patience_s is None else patience_s
        while (it := found()) is None:
            waited = time.monotonic() - began
            if waited > (min(patience_s, asked_s) if self.told() else patience_s):
                return None
            if waited > 5 and not said:
                self._say(f"waiting {what}")
                said = True
            time.sleep(_NAP_S)
            os.scandir(self._at).close()  # a network file system looks again
        return it


def merge(own: Mapping[str, Any], parts: Mapping[int, Mapping[str, Any] | None]) -> dict[str, Any]:
    """One end for the whole attempt: of the parts that failed the one that failed by itself, and first.

    A part that only lost another one, or was ended for one, counts less; one that nobody told of failed.
    """
    ends = [own, *(part for part in parts.values() if part is not None)]
    silent = [node for node, part in parts.items() if part is None]
    failed = [end for end in ends if end["then"] not in ("done", "leave")]
    causes = [end for end in failed if end["class"] != ELSEWHERE]
    chosen: Mapping[str, Any] = own
    if causes:
        chosen = min(causes, key=lambda end: (end["class"] == LOST, str(end["at"])))
    elif failed or silent:
        says = f"nodes {silent} did not say how their parts ended" if silent else str(failed[0]["says"])
        chosen = {**own, "class": ELSEWHERE, "then": "restart", "says": says, "rank": None, "detail": ""}
    else:
        chosen = next((end for end in ends if end["then"] == "leave"), own)
    reached = max((end["reached"] for end in ends if end["reached"] is not None), default=None)
    kept = ("ordinal", "before", "back", "checkpoint", "older")
    told = {name: value for name, value in chosen.items() if name != "host"}
    return {**told, **{name: own[name] for name in kept if name in own}, "reached": reached}


def code(same: Sequence[Path]) -> dict[str, str]:
    """Versions, and a digest over the toolkit's files and those in `same`, by their names within it."""
    digest = hashlib.sha256()
    for top in (Path(ms_resume.__file__).parent, *same):
        inside = sorted(top.rglob("*")) if top.is_dir() else [top]
        for path in inside:
            if path.is_file() and (path == top or path.suffix in _SUFFIXES):
                digest.update(f"{path.relative_to(top)}\0".encode() + path.read_bytes() + b"\0")
    versions = {"python": platform.python_version()}
    for package in ("mindspore", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "none"
    return {**versions, "code": digest.hexdigest()[:16]}
