"""Read frozen, typed dataclasses from a block of settings, and list every wrong value at once.

A class declares its settings with `setting` and groups with `section`; `read` builds it from a
mapping and `describe` lists its settings. Nothing here knows what the settings mean.
"""

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from lambda_pg_cdk.stage.messages import problem, shown

T = TypeVar("T")

REQUIRED: Any = dataclasses.MISSING


class ConfigurationError(ValueError):
    """A stage's settings are wrong; the message has one line for each problem."""

    def __init__(self, stage: str, problems: list[str]) -> None:
        self.stage = stage
        self.problems = tuple(problems)
        listed = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"stage {stage!r} in cdk.json has {len(problems)} problem(s):\n{listed}")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a setting means, and its allowed values."""

    doc: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[object, ...] = ()
    pattern: str = ""
    shape: str = ""

    def allowed(self) -> str:
        """Describe the allowed values, for the documentation."""
        if self.choices:
            return "one of " + ", ".join(shown(choice) for choice in self.choices)
        if self.minimum is not None or self.maximum is not None:
            return f"{self.minimum} to {self.maximum} {self.unit}".rstrip()
        return self.shape

    def must_be(self, kind: str) -> str:
        """Describe the allowed values of a kind ("a whole number"), for a message."""
        if len(self.choices) == 1:
            return shown(self.choices[0])
        if self.choices:
            return f"{self.allowed()} {self.unit}".rstrip()
        if self.minimum is not None or self.maximum is not None:
            return f"{kind} from {self.allowed()}"
        return f"{kind}: {self.shape}" if self.shape else kind

    def accepts(self, value: object) -> bool:
        """Check one value whose type is right already."""
        if isinstance(value, tuple):
            return bool(value) and all(self.accepts(item) for item in value)
        if self.choices:
            return value in self.choices
        if isinstance(value, int | float) and not isinstance(value, bool):
            return self._within(value)
        return not self.pattern or re.fullmatch(self.pattern, str(value)) is not None

    def _within(self, value: float) -> bool:
        above = self.minimum is None or value >= self.minimum
        return above and (self.maximum is None or value <= self.maximum)


def setting(default: Any, doc: str, **rule: Any) -> Any:
    """Declare one setting: its default (or `REQUIRED`), its meaning, its unit and its range."""
    return dataclasses.field(default=default, metadata={"rule": Rule(doc=doc, **rule)})


def section(kind: Callable[[], Any], doc: str) -> Any:
    """Declare a group of settings that all have defaults."""
    return dataclasses.field(default_factory=kind, metadata={"rule": Rule(doc=doc)})


def read(
    kind: type[T], block: object, problems: list[str], path: str = "", **given: object
) -> T | None:
    """Build `kind` from a mapping; if it is wrong, add to `problems` and return None.

    `given` are the fields that are not settings.
    """
    if not isinstance(block, Mapping):
        problems.append(problem(path or "the block", block, "be a group of settings"))
        return None
    before = len(problems)
    fields = {field.name: field for field in _settings_of(kind)}
    problems += [_unknown(_join(path, str(name)), fields) for name in block if name not in fields]
    values = {
        name: _read_field(kind, field, block, problems, path) for name, field in fields.items()
    }
    if len(problems) > before:
        return None
    return kind(**given, **values)


def describe(kind: type, path: str = "") -> Iterator[tuple[str, Rule, object]]:
    """Yield each setting's dotted name, its rule and its default, in order of declaration."""
    hints = _hints_of(kind)
    for field in _settings_of(kind):
        name = _join(path, field.name)
        if dataclasses.is_dataclass(hints[field.name]):
            yield from describe(hints[field.name], name)
        else:
            yield name, field.metadata["rule"], field.default


@functools.cache
def _hints_of(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _settings_of(kind: type) -> list["dataclasses.Field[Any]"]:
    fields = dataclasses.fields(kind)
    return [field for field in fields if "rule" in field.metadata]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _unknown(name: str, fields: Mapping[str, object]) -> str:
    return f"{name} is not a setting; must be one of {', '.join(fields)}"


def _read_field(
    kind: type,
    field: "dataclasses.Field[Any]",
    block: Mapping[str, object],
    problems: list[str],
    path: str,
) -> object:
    name, rule = _join(path, field.name), field.metadata["rule"]
    hint = _hints_of(kind)[field.name]
    if dataclasses.is_dataclass(hint):
        return read(typing.cast("type[object]", hint), block.get(field.name, {}), problems, name)
    if field.name not in block:
        if field.default is dataclasses.MISSING:
            problems.append(f"{name} is missing; must be {_must_be(hint, rule)}")
            return None
        return field.default
    value = block[field.name]
    value = tuple(value) if isinstance(value, list) else value
    if not _has_type(value, hint) or (value is not None and not rule.accepts(value)):
        problems.append(problem(name, block[field.name], f"be {_must_be(hint, rule)}"))
    return value


def _has_type(value: object, hint: object) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_has_type(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        return isinstance(value, tuple) and all(_has_type(one, item) for one in value)
    if hint in {int, float}:
        kinds = (int,) if hint is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    return isinstance(value, typing.cast("type", hint))


def _must_be(hint: object, rule: Rule) -> str:
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    text = rule.must_be(_KINDS.get(parts[0], "a list of text"))
    if any(typing.get_origin(part) is tuple for part in parts[1:]):
        text = f"{text}, or a list of these"
    return f"{text}, or null" if types.NoneType in parts and None not in rule.choices else text


_KINDS: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
}
