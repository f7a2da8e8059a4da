"""The local cloud runs Python: it refuses to deploy a function that connects in another runtime."""

import json
from pathlib import Path
from typing import Any

import pytest

from lambda_pg_cdk.local.deployment.synthesise import UnknownRuntimeError, refuse_other_runtimes

CONNECTS = {"Environment": {"Variables": {"PGHOST": "pooler", "LAMBDA_PG_STRICT": "1"}}}


def assembly(folder: Path, **functions: dict[str, Any]) -> Path:
    """Write what synth writes for a stack with these functions."""
    stack = {"type": "aws:cloudformation:stack", "properties": {"templateFile": "Api.json"}}
    manifest = {"artifacts": {"Tree": {"type": "cdk:tree"}, "Api": stack}}
    resources = {
        name: {"Type": "AWS::Lambda::Function", "Properties": properties}
        for name, properties in functions.items()
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "Api.json").write_text(json.dumps({"Resources": resources}))
    return folder


def test_node_and_images_are_refused_with_one_sentence(tmp_path: Path) -> None:
    """It names each function and its runtime, and says how to leave it out."""
    image = {**CONNECTS, "PackageType": "Image"}
    node = {**CONNECTS, "Runtime": "nodejs22.x"}
    python = {**CONNECTS, "Runtime": "python3.13"}
    with pytest.raises(UnknownRuntimeError) as refused:
        refuse_other_runtimes(assembly(tmp_path, Node=node, Image=image, Python=python))
    assert str(refused.value) == (
        "the local cloud runs Python only, and these functions have another runtime:"
        " Image (a container image), Node (nodejs22.x)."
        " Add them only if stage.config.stage is not 'local'"
    )


def test_what_does_not_connect_is_not_refused(tmp_path: Path) -> None:
    """The CDK adds functions in Node, which run in the control plane."""
    own = {"Runtime": {"Fn::FindInMap": ["Runtimes", "us-east-1", "node"]}}
    refuse_other_runtimes(assembly(tmp_path, Own=own, Python={**CONNECTS, "Runtime": "python3.12"}))
