"""The templates of a stage, synthesised when a test first asks for them."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.install.installed import complete
from lambda_pg_cdk.tools import synth as synthesis
from lambda_pg_cdk.tools.synth import new_stage

STAGES = synthesis.stages()
SHARED = PROJECT / "build" / "templates"
"""A folder for each state of the sources, and in it one for each stage and combination."""

WITHOUT_EFFECT = ("benchmarks/results/", "docs/", "tests/")

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
    new_stage(stage, folder, override).synth()
    return read(stage, folder)


def read(stage: str, folder: Path) -> Stage:
    """Read the templates of an assembly."""
    artifacts = json.loads((folder / "manifest.json").read_text())["artifacts"]
    templates = {
        artifact["properties"].get("stackName", name): artifact["properties"]["templateFile"]
        for name, artifact in artifacts.items()
        if artifact["type"] == "aws:cloudformation:stack"
    }
    prefix = f"LambdaPg-{stage}-"
    return Stage(
        stage,
        folder,
        {
            name.removeprefix(prefix): json.loads((folder / file).read_text())
            for name, file in templates.items()
        },
    )


def synthesise_once(name: str, stage: str, override: Mapping[str, Any] | None = None) -> Stage:
    """Synthesise what all processes and runs share that have the same sources."""
    folder = complete(SHARED / sources() / name, partial(_synthesise, stage, override))
    return read(stage, folder)


def _synthesise(stage: str, override: Mapping[str, Any] | None, folder: Path) -> None:
    new_stage(stage, folder, override).synth()


@cache
def sources() -> str:
    """Return a digest of the interpreter and of all files that a template may depend on."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        check=True,
        text=True,
    )
    digest = hashlib.sha256(sys.version.encode())
    for name in sorted(filter(None, listed.stdout.split("\0"))):
        path = PROJECT / name
        if not name.startswith(WITHOUT_EFFECT) and path.is_file():
            digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:20]


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
