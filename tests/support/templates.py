"""The templates of a stage, synthesised when a test first asks for them."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.install.installed import complete
from lambda_pg_cdk.tools import synth as synthesis
from lambda_pg_cdk.tools.synth import new_stage

if TYPE_CHECKING:
    from constructs import IConstruct

STAGES = synthesis.stages()
SHARED = PROJECT / "build" / "templates"
"""A folder for each state of the sources, and in it one for each stage and each override."""

REPORT = "validation-report.json"
"""The file of findings, which the CDK writes beside the templates."""

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
    """Synthesise a stage as `cdk deploy` does, and read its templates."""
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
    return Stage(
        stage,
        folder,
        {
            name.rpartition("-")[2]: json.loads((folder / file).read_text())
            for name, file in templates.items()
        },
    )


def synthesise_once(stage: str, override: Mapping[str, Any] | None = None) -> Stage:
    """Synthesise what all processes and runs share that have the same sources."""
    changes = hashlib.sha256(json.dumps(override or {}).encode()).hexdigest()[:12]
    folder = SHARED / sources() / (f"{stage}-{changes}" if override else stage)
    return read(stage, complete(folder, partial(_synthesise, stage, override)))


def _synthesise(stage: str, override: Mapping[str, Any] | None, folder: Path) -> None:
    made = new_stage(stage, folder, override)
    made.check()
    synthesise_with_rules(made.api, folder)


def synthesise_with_rules(part: "IConstruct", folder: Path) -> None:
    """Synthesise an app, and have both rule sets write their findings beside the templates.

    `part` is any construct of the app, and `folder` is where the app is synthesised.
    They change no template: `test_two_runs_give_the_same_templates` compares with one without them.
    """
    import cdk_nag  # noqa: PLC0415 - the CDK starts in seconds
    from aws_cdk import App, Validations  # noqa: PLC0415 - the CDK starts in seconds

    app = part.node.root
    assert isinstance(app, App)
    for pack in (cdk_nag.AwsSolutionsChecks, cdk_nag.ServerlessChecks):
        Validations.of(app).add_plugins(pack(app))
    try:
        app.synth()
    except RuntimeError:  # that there are findings, too
        if not (folder / REPORT).exists():
            raise


def findings(folder: Path) -> list[str]:
    """List the open findings of both rule sets in what was synthesised into a folder."""
    reports = json.loads((folder / REPORT).read_text())["pluginReports"]
    assert {report["pluginName"] for report in reports} >= {"AwsSolutions", "Serverless"}
    return [json.dumps(found) for report in reports for found in report["violations"]]


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
    digest = hashlib.sha256(sys.version.encode() + Path(__file__).read_bytes())
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
