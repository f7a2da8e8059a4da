"""Read the templates of a whole app as one: what each expression says, whichever stack says it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.synth.walk.pages import RETURNED

PSEUDO = {
    "AWS::AccountId": "111122223333",
    "AWS::Partition": "aws",
    "AWS::Region": "eu-west-1",
    "AWS::StackId": "arn:aws:cloudformation:eu-west-1:111122223333:stack/name/id",
    "AWS::StackName": "name",
    "AWS::URLSuffix": "amazonaws.com",
}


@dataclass(frozen=True)
class Resource:
    """One resource of one stack."""

    stack: str
    name: str
    kind: str
    properties: Mapping[str, Any]
    waits_for: tuple[str, ...] = ()
    """Names of those that it says it depends on."""

    def __str__(self) -> str:
        """Say where it is, for a message."""
        return f"stack {self.stack}, {self.kind} {self.name}"

    @property
    def label(self) -> str:
        """Stand for the name that CloudFormation gives it."""
        return f"{{{short(self.kind)} {self.stack}.{self.name}}}"


def short(kind: str) -> str:
    """Write a resource type without what can be taken for a part of an ARN."""
    return kind.removeprefix("AWS::").replace("::", ".")


class Deployed:
    """The templates of one app. Texts have the labels of resources where names will be."""

    def __init__(self, templates: Mapping[str, Mapping[str, Any]]) -> None:
        """Take each stack's template by the stack's name."""
        self._templates = templates
        self.resources = [
            Resource(
                stack,
                name,
                each["Type"],
                each.get("Properties", {}),
                tuple(as_list(each.get("DependsOn", []))),
            )
            for stack, template in templates.items()
            for name, each in template.get("Resources", {}).items()
        ]
        self._by_name = {(each.stack, each.name): each for each in self.resources}
        self.by_label = {each.label: each for each in self.resources}

    def of_kind(self, kind: str) -> list[Resource]:
        """Find the resources of one type in all stacks."""
        return [each for each in self.resources if each.kind == kind]

    @cached_property
    def _exports(self) -> dict[str, tuple[str, Any]]:
        return {
            self.text(stack, output["Export"]["Name"]): (stack, output["Value"])
            for stack, template in self._templates.items()
            for output in template.get("Outputs", {}).values()
            if "Export" in output
        }

    @cached_property
    def _published(self) -> dict[str, tuple[str, Any]]:
        return {
            self.text(each.stack, each.properties["Name"]): (each.stack, each.properties["Value"])
            for each in self.of_kind("AWS::SSM::Parameter")
        }

    def text(self, stack: str, expression: Any) -> str:
        """Say what an expression of a stack comes to."""
        if not isinstance(expression, Mapping):
            return str(expression)
        ((function, argument),) = expression.items()
        return str(getattr(self, f"_{function.replace('::', '_').lower()}")(stack, argument))

    def texts(self, resource: Resource, path: str) -> list[str]:
        """Say what the properties at a path come to; '*' in a path is each of a list."""
        return [self.text(resource.stack, each) for each in _at(resource.properties, path)]

    def mentions(self, resource: Resource) -> Iterator[tuple[str, str]]:
        """Yield the path and the text of each expression in a resource."""
        for path, expression in _leaves(resource.properties):
            yield path, self.text(resource.stack, expression)

    def returned(self, resource: Resource, attribute: str) -> str:
        """Say what Ref or Fn::GetAtt returns; what the tables do not know is said to be unknown."""
        row = RETURNED.get((resource.kind, attribute))
        if row is None:
            return f"{{{short(resource.kind)}.{attribute} {resource.stack}.{resource.name}}}"
        if row.property is not None and row.property in resource.properties:
            return self.text(resource.stack, resource.properties[row.property])
        return row.value.replace("{}", resource.label)

    def _ref(self, stack: str, name: str) -> str:
        if name in PSEUDO:
            return PSEUDO[name]
        if (stack, name) in self._by_name:
            return self.returned(self._by_name[stack, name], "Ref")
        parameter = self._templates[stack]["Parameters"][name]
        if parameter["Default"] in self._published:
            return self.text(*self._published[parameter["Default"]])
        return f"{{parameter {parameter['Default']}}}"

    def _fn_getatt(self, stack: str, argument: Any) -> str:
        name, attribute = argument if isinstance(argument, list) else argument.split(".", 1)
        return self.returned(self._by_name[stack, name], attribute)

    def _fn_importvalue(self, stack: str, argument: Any) -> str:
        return self.text(*self._exports[self.text(stack, argument)])

    def _fn_join(self, stack: str, argument: Any) -> str:
        separator, parts = argument
        if isinstance(parts, Mapping):
            return self.text(stack, parts)
        return str(separator).join(self.text(stack, part) for part in parts)

    def _fn_select(self, stack: str, argument: Any) -> str:
        index, parts = argument
        if isinstance(parts, Mapping) and "Fn::Split" in parts:
            separator, whole = parts["Fn::Split"]
            text = self.text(stack, whole)
            parts = text.split(separator)
            if int(index) >= len(parts):  # an attribute that the tables do not know
                return text
        if isinstance(parts, Mapping):
            return self.text(stack, parts)
        return self.text(stack, parts[int(index)])

    def _fn_base64(self, stack: str, argument: Any) -> str:
        return self.text(stack, argument)

    def _fn_split(self, stack: str, argument: Any) -> str:
        return self.text(stack, argument[1])

    def _fn_getazs(self, stack: str, argument: Any) -> str:
        return f"{{zones of {self.text(stack, argument)}}}"

    def _fn_sub(self, stack: str, argument: Any) -> str:
        template, given = argument if isinstance(argument, list) else (argument, {})

        def value(found: re.Match[str]) -> str:
            name = found[1]
            if name in given:
                return self.text(stack, given[name])
            known = name in PSEUDO or "." not in name
            return self._ref(stack, name) if known else self._fn_getatt(stack, name)

        return re.sub(r"\$\{([^}!]+)\}", value, template)


def _at(value: Any, path: str) -> list[Any]:
    """Find what is at a dotted path; lists without '*' in the path are entered, too."""
    if not path:
        return value if isinstance(value, list) else [value]
    first, _, rest = path.partition(".")
    if first == "*" and not isinstance(value, list):
        return _at(value, rest)
    if isinstance(value, list):
        return [found for each in value for found in _at(each, rest if first == "*" else path)]
    if not isinstance(value, Mapping) or first not in value:
        return []
    return _at(value[first], rest)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each text, number and expression with its path; a position in a list is '*'."""
    if isinstance(value, Mapping):
        names = list(value)
        if len(names) == 1 and (names[0] == "Ref" or names[0].startswith("Fn::")):
            yield path, value
            return
        for name in names:
            yield from _leaves(value[name], f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each, f"{path}.*")
    else:
        yield path, value


def matches(pattern: str, text: str) -> bool:
    """Compare a text with a pattern of the tables."""
    parts = re.split(r"(\$\{[^}]+\}|\{[\w.]+\}|\*)", pattern)
    return re.fullmatch("".join(_part(part) for part in parts), text, re.DOTALL) is not None


def _part(part: str) -> str:
    if part == "*":
        return ".*"
    if part.startswith("${"):
        return ".+"
    if re.fullmatch(r"\{[\w.]+\}", part):
        return rf"\{{{re.escape(part[1:-1])} [^{{}}]+\}}"
    return re.escape(part)


def labels(text: str) -> list[str]:
    """Find the resources that a text names."""
    return re.findall(r"\{[\w.]+ [^{}]+\}", text)


def statements(value: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each policy statement under a value, with its path."""
    if isinstance(value, Mapping):
        if "Effect" in value and ("Action" in value or "NotAction" in value):
            yield path, value
            return
        for name, each in value.items():
            yield from statements(each, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for each in value:
            yield from statements(each, path)


def as_list(value: Any) -> list[Any]:
    """Give one or several as a list."""
    return value if isinstance(value, list) else [value]
