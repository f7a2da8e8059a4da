"""What a release's templates have that holds data or that others know by its address.

A new version must not replace or delete it unseen, so tests/synth/released keeps, for each app of
APPS, these resources and the properties whose change replaces them.

    python -m lambda_pg_cdk.tools.released v0.1.0     writes it from this checkout's templates
"""

import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.tools.synth import BASE, COMBINATIONS, new_stage

FOLDER = PROJECT / "tests" / "synth" / "released"
APPS = ("prod", "aurora-pgbouncer", "instance-rds-proxy-with-secret")
"""A stage, and combinations with the kinds of resources that it does not have."""

REGION = "eu-west-1"
STATEFUL = frozenset(
    {
        "AWS::ApiGatewayV2::Api",  # its URL
        "AWS::Cognito::UserPool",
        "AWS::Cognito::UserPoolClient",  # its id is in other apps' settings
        "AWS::EC2::Subnet",  # what lies in them moves with them
        "AWS::EC2::VPC",
        "AWS::KMS::Key",
        "AWS::Logs::LogGroup",
        "AWS::RDS::DBCluster",
        "AWS::RDS::DBInstance",
        "AWS::RDS::DBProxy",  # requests are answered 503 until the next stack is deployed
        "AWS::RDS::DBSubnetGroup",
        "AWS::S3::Bucket",
        "AWS::SecretsManager::Secret",
    }
)
POLICIES = ("DeletionPolicy", "UpdateReplacePolicy")

Resources = dict[str, dict[str, Any]]
"""By stack and logical id."""


def resources_of(templates: Mapping[str, Mapping[str, Any]]) -> Resources:
    """Return what is kept of an app's templates."""
    return {
        f"{stack}.{name}": _kept(resource)
        for stack, template in sorted(templates.items())
        for name, resource in sorted(template.get("Resources", {}).items())
        if resource["Type"] in STATEFUL
    }


def _kept(resource: Mapping[str, Any]) -> dict[str, Any]:
    values = resource.get("Properties", {})
    found = {name: _at(values, name) for name in replacing(resource["Type"])}
    fixed = {name: value for name, value in found.items() if value is not None}
    policies = {name: resource[name] for name in POLICIES if name in resource}
    return {"Type": resource["Type"], **policies, "Properties": fixed}


def _at(values: Any, path: str) -> Any:
    for name in path.split("/"):
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def differences(before: Resources, now: Resources) -> Iterator[tuple[str, str]]:
    """Yield each resource that a deployment deletes or replaces, or no longer keeps, and why."""
    for name, resource in before.items():
        current = now.get(name)
        if current is None or current["Type"] != resource["Type"]:
            yield name, f"{resource['Type']} is gone: a deployment deletes it"
            continue
        old, new = resource["Properties"], current["Properties"]
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                change = f"{key} is {new.get(key)!r}, and was {old.get(key)!r}"
                yield name, f"{change}: a deployment replaces it"
        for key in POLICIES:
            if resource.get(key) != current.get(key):
                yield name, f"{key} is {current.get(key)}, and was {resource.get(key)}"


@cache
def replacing(kind: str) -> tuple[str, ...]:
    """Return the properties of a type whose change always replaces a resource.

    CloudFormation's schema of the type, as cfn-lint has it, calls them createOnlyProperties.
    """
    spec = importlib.util.find_spec("cfnlint")
    assert spec is not None  # noqa: S101 - a requirement of tests and releases
    assert spec.origin is not None  # noqa: S101 - it is a folder with an __init__.py
    schemas = Path(spec.origin).parent / "data" / "schemas"
    number = json.loads((schemas / "providers" / f"{REGION}.json").read_text())[kind]
    schema = json.loads((schemas / "resources" / f"{number}.json").read_text())
    paths = schema.get("createOnlyProperties", [])
    return tuple(path.removeprefix("/properties/") for path in paths)


def load(app: str) -> tuple[str, Resources]:
    """Return which release is kept, and its resources."""
    kept = json.loads((FOLDER / f"{app}.json").read_text())
    return kept["release"], kept["resources"]


def write(release: str) -> None:
    """Keep the resources of today's templates as those of a release."""
    FOLDER.mkdir(exist_ok=True)
    for app in APPS:
        stage, override = (BASE, COMBINATIONS[app]) if app in COMBINATIONS else (app, None)
        with tempfile.TemporaryDirectory() as folder:
            assembly = new_stage(stage, Path(folder), override).synth()
            prefix = f"LambdaPg-{stage}-"
            templates = {
                stack.stack_name.removeprefix(prefix): stack.template for stack in assembly.stacks
            }
        kept = {"release": release, "resources": resources_of(templates)}
        text = json.dumps(kept, indent=1, sort_keys=True)
        (FOLDER / f"{app}.json").write_text(text + "\n")


if __name__ == "__main__":
    write(sys.argv[1])
