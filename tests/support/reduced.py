"""Templates without what another one has to the letter: the linter takes long for each resource."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from graphlib import TopologicalSorter
from typing import Any

Template = Mapping[str, Any]

PSEUDO = "AWS::"
LIMITS = {"Resources": 500, "Parameters": 200, "Outputs": 200}
"""https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html"""


def references(part: Any) -> Iterator[str]:
    """Yield the resources and parameters that a part of a template names."""
    if isinstance(part, Mapping):
        for key, value in part.items():
            yield from _named(key, value)
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def _named(key: str, value: Any) -> Iterator[str]:
    if key == "Ref":
        yield value
    elif key == "Fn::GetAtt":
        yield value[0] if isinstance(value, list) else value.partition(".")[0]
    elif key == "DependsOn":
        yield from [value] if isinstance(value, str) else value
    elif key == "Fn::Sub":
        text = value if isinstance(value, str) else value[0]
        own = set() if isinstance(value, str) else set(value[1])
        yield from set(re.findall(r"\$\{([^!.}]+)[^}]*\}", text)) - own


def reduced(templates: Iterable[Template]) -> Iterator[Template]:
    """Yield each template with what is new in it, and with all that this refers to."""
    seen = set[str]()
    for template in templates:
        resources, outputs = template.get("Resources", {}), template.get("Outputs", {})
        new = {name: each for name, each in outputs.items() if _key(name, each) not in seen}
        first = {name for name, each in resources.items() if _key(name, each) not in seen}
        kept = _with_references(resources, first | set(references(new)))
        seen |= {_key(name, each) for name, each in (kept | new).items()}
        if kept or new:
            yield _with(template, kept, new)


def _with_references(resources: Template, names: set[str]) -> dict[str, Any]:
    """Return some of the resources, and those that they refer to."""
    waiting, kept = set(names), set[str]()
    while waiting:
        name = waiting.pop()
        if name in resources and name not in kept:
            kept.add(name)
            waiting |= set(references(resources[name]))
    return {name: each for name, each in resources.items() if name in kept}


def _with(template: Template, resources: Template, outputs: Template) -> Template:
    changed = {**template, "Resources": resources, "Outputs": outputs, "Parameters": {}}
    used = set(references(changed))
    declared = template.get("Parameters", {}).items()
    changed["Parameters"] = {name: each for name, each in declared if name in used}
    return {section: each for section, each in changed.items() if each}


def _key(name: str, part: Any) -> str:
    return json.dumps([name, part], sort_keys=True)


def problems(template: Template) -> list[str]:
    """List what is wrong with a template as a whole; raise `CycleError` for a circle."""
    resources, parameters = template.get("Resources", {}), template.get("Parameters", {})
    used = {name for name in references(template) if not name.startswith(PSEUDO)}
    declared = {*resources, *parameters}
    graph = {name: set(references(each)) & set(resources) for name, each in resources.items()}
    TopologicalSorter(graph).prepare()
    return [
        *(f"{name} is referred to, but is not there" for name in sorted(used - declared)),
        *(f"the parameter {name} is not used" for name in sorted(set(parameters) - used)),
        *(
            f"{section} has {len(template[section])} entries; must be at most {most}"
            for section, most in LIMITS.items()
            if len(template.get(section, {})) > most
        ),
    ]
