"""Templates against three rule sets: CloudFormation's own, AwsSolutions and Serverless."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from lambda_pg_cdk.tools.synth import COMBINATIONS, lint
from tests.support.templates import STAGES, Stage, findings, synthesise_with_rules


def test_templates_are_valid_cloudformation(
    stages: dict[str, Stage],
    combinations: dict[str, Stage],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The linter finds nothing, with the two exceptions of tools/cfnlint.yaml."""
    code = lint(each.folder for each in (*stages.values(), *combinations.values()))
    assert (code, capfd.readouterr().out) == (0, "")


@pytest.mark.parametrize("name", [*STAGES, *COMBINATIONS])
def test_every_finding_is_suppressed_with_a_reason(apps: Mapping[str, Stage], name: str) -> None:
    """Neither AwsSolutions nor Serverless reports anything that no construct suppresses."""
    assert findings(apps[name].folder) == []


def test_the_rules_find_something_where_there_is_something(tmp_path: Path) -> None:
    """A function without suppressions has findings of both rule sets."""
    from aws_cdk import App, Stack
    from aws_cdk import aws_lambda as lambda_

    app = App(outdir=str(tmp_path))
    lambda_.Function(
        Stack(app, "Plain"),
        "Function",
        runtime=lambda_.Runtime.PYTHON_3_9,
        handler="index.handler",
        code=lambda_.Code.from_inline("handler = print"),
    )
    synthesise_with_rules(app, tmp_path)
    found = json.dumps(findings(tmp_path))
    assert "AwsSolutions-L1" in found
    assert "Serverless-LambdaTracing" in found
