"""The mapping file: how the names of a file become those of a net.

    ms_resume_name_map: 1
    rules:
    - prefix: {grpo_model_train.policy_model.: ''}
    - regex: {'(.*)\\.gamma': '\\1.weight'}
    - split: '(.*)\\.w_qkv\\.weight'
      into: ['\\1.wq.weight', '\\1.wk.weight', '\\1.wv.weight']
      sizes: [3584, 512, 512]

Rules work one after the other, each on the names that those before it left. docs/loading.md has every kind. A rule that
fits no name and two names that become one are errors: a mapping that does half of what it says is never applied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ms_resume.errors import UsageError
from ms_resume.load.names import rules as kinds
from ms_resume.load.names.recipes import Taken, View
from ms_resume.load.names.rules import Rule, Table, Wrong
from ms_resume.load.source import Readable
from ms_resume.ondisk import reading
from ms_resume.records import ROLES, TensorInfo

VERSION = 1
_VERSION_KEY = "ms_resume_name_map"
_DEEPEST = 8
_HINT = "docs/loading.md shows every kind of rule"


@dataclass(frozen=True)
class NameMap:
    """Rules for every role, and further ones by role, which come after those."""

    rules: tuple[Rule, ...] = ()
    roles: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)
    where: str = "the name map"

    @classmethod
    def read(cls, path: Path) -> NameMap:
        """The mapping in a file. Raises UsageError where it holds none, naming the rule that is wrong."""
        given = path.resolve() if path.is_symlink() else path  # a person gave it, so a link is followed
        if not given.is_file():
            raise UsageError(f"{path}: is not a file, expected a name map", hint="check the path")
        return cls.parse(reading.content(given), str(path))

    @classmethod
    def parse(cls, text: bytes | str, where: str = "the name map") -> NameMap:
        document = _document(text, where)
        try:
            rules = kinds.parse(document.get("rules", []))
            by_role = document.get("roles", {})
            if not isinstance(by_role, dict) or not by_role.keys() <= set(ROLES):
                raise Wrong(f"roles: {reading.brief(by_role)}, expected rules by role ({', '.join(ROLES)})")
            roles = {role: kinds.parse(given) for role, given in by_role.items()}
        except Wrong as wrong:
            raise UsageError(f"{where}: {wrong}", hint=_HINT) from None
        if not rules and not any(roles.values()):
            raise UsageError(f"{where}: a name map without a rule", hint=_HINT)
        return cls(rules, roles, where)

    def text(self) -> str:
        """As a file has it."""
        import yaml

        document: dict[str, Any] = {_VERSION_KEY: VERSION}
        if self.rules:
            document["rules"] = [rule.said for rule in self.rules]
        if self.roles:
            document["roles"] = {role: [rule.said for rule in rules] for role, rules in self.roles.items()}
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1000)

    def plan(self, tensors: Mapping[str, TensorInfo], role: str | None = None, of: str = "the file") -> Table:
        """What each name of the net is made of.

        Args:
            of: The file, for messages.

        Raises:
            UsageError: A rule fits no name, two names become one, or a tensor has not the shape that a rule needs.
        """
        table: Table = {name: Taken(name, info) for name, info in tensors.items()}
        chosen = [*self.rules, *self.roles.get(role or "", ())]
        for number, rule in enumerate(chosen, 1):
            try:
                table = rule.apply(table)
            except Wrong as wrong:
                raise UsageError(
                    f"{self.where}: rule {number} ({rule.kind}): {wrong} (applied to {of})",
                    hint="`ms-resume explain A --against B --name-map FILE` shows what it does; " + _HINT,
                    rule=number,
                ) from None
        return table

    def apply(self, source: Readable, role: str | None = None) -> View:
        """`source` under the names that the rules give. Raises as `plan` does; nothing is read."""
        return View(source, self.plan(source.tensors, role, str(source.path)))


def _document(text: bytes | str, where: str) -> dict[str, Any]:
    import yaml

    try:
        _check_plain(yaml.parse(text, Loader=_safe_loader()))
        document = yaml.load(text, Loader=_strict_loader())
    except (yaml.YAMLError, UnicodeError, RecursionError, ValueError) as error:
        told = " ".join(str(error).split())
        raise UsageError(f"{where}: cannot be read as YAML: {told:.200}", hint=_HINT) from None
    if not isinstance(document, dict) or document.get(_VERSION_KEY) != VERSION:
        raise UsageError(f"{where}: is no name map: expected `{_VERSION_KEY}: {VERSION}` and rules", hint=_HINT)
    if unknown := [key for key in document if key not in (_VERSION_KEY, "rules", "roles")]:
        raise UsageError(f"{where}: unknown key {unknown[0]!r}, expected rules and roles", hint=_HINT)
    return document


def _check_plain(events: Iterable[Any]) -> None:
    """Before it is built: libyaml's loader ends the process where a document is nested deeply enough."""
    import yaml

    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST or isinstance(event, yaml.AliasEvent):
            raise ValueError("nested too deeply" if depth > _DEEPEST else "it refers to itself by an alias")


def _safe_loader() -> Any:
    """libyaml's where it is there: ten thousand names are read in a second less."""
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _strict_loader() -> Any:
    """One to which a name twice in one mapping is an error: YAML itself takes the last one in silence."""
    import yaml

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        for key, value in loader.construct_pairs(node, deep=True):
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise ValueError(f"the key {reading.brief(key)} is not text")
            if key in made:
                raise ValueError(f"{key!r} stands twice in one mapping")
            made[key] = value
        return made

    strict: Any = type("Strict", (_safe_loader(),), {})
    strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    return strict
