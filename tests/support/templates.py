"""The templates of a stage, synthesised when a test first asks for them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aws_cdk.cx_api import CloudAssembly

from lambda_pg_cdk.tools import synth as synthesis
from lambda_pg_cdk.tools.synth import new_app

STAGES = synthesis.stages()

Resources = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Stage:
    """The templates of one stage, by the last part of the stacks' names."""

    name: str
    folder: Path
    templates: Mapping[str, dict[str, Any]]

    def resources(self, stack: str, kind: str) -> Resources:
        """Find a stack's resources of one type."""
        found = self.templates[stack].get("Resources", {}).items()
        return {name: resource for name, resource in found if resource["Type"] == kind}

    def all(self, kind: str) -> Resources:
        """Find the resources of one type in all stacks."""
        return {
            f"{stack}.{name}": resource
            for stack in self.templates
            for name, resource in self.resources(stack, kind).items()
        }

    def functions(self) -> Resources:
        """Find this app's own functions by their folder."""
        found = self.all("AWS::Lambda::Function").values()
        tagged = ((tags(resource).get("lambda-pg:function"), resource) for resource in found)
        return {folder: resource["Properties"] for folder, resource in tagged if folder}


def tags(resource: Mapping[str, Any]) -> dict[str, str]:
    """Read a resource's tags."""
    return {tag["Key"]: tag["Value"] for tag in resource["Properties"].get("Tags", [])}


def synthesise(stage: str, folder: Path, override: Mapping[str, Any] | None = None) -> Stage:
    """Synthesise a stage and read its templates."""
    assembly: CloudAssembly = new_app(stage, folder, override).synth()
    templates = {stack.stack_name: stack.template for stack in assembly.stacks}
    prefix = f"LambdaPg-{stage}-"
    return Stage(stage, folder, {name.removeprefix(prefix): t for name, t in templates.items()})


class Synthesised(Mapping[str, Stage]):
    """Stages by name, each synthesised when a test first asks for it: all at once takes minutes."""

    def __init__(self, names: Iterable[str], make: Callable[[str], Stage]) -> None:
        """Know the names, and how to make each."""
        self._names, self._make, self._made = tuple(names), make, dict[str, Stage]()

    def __getitem__(self, name: str) -> Stage:
        """Give one of them."""
        if name not in self._names:
            raise KeyError(name)
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self._names)

    def __len__(self) -> int:
        """Count the names."""
        return len(self._names)
