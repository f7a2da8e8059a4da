"""Templates against three rule sets: CloudFormation's own, AwsSolutions and Serverless."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import cdk_nag
import pytest
from aws_cdk import App, Stack, Validations
from aws_cdk import aws_lambda as lambda_

from lambda_pg_cdk.tools.synth import everything, lint, new_stage
from tests.support.templates import Stage


def test_templates_are_valid_cloudformation(
    stages: dict[str, Stage],
    combinations: dict[str, Stage],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The linter finds nothing, with the two exceptions of tools/cfnlint.yaml."""
    code = lint(each.folder for each in (*stages.values(), *combinations.values()))
    assert (code, capfd.readouterr().out) == (0, "")


@pytest.mark.parametrize(
    ("stage", "override"), [pytest.param(s, o, id=name) for name, s, o in everything()]
)
def test_every_finding_is_suppressed_with_a_reason(
    stage: str, override: Mapping[str, Any], tmp_path: Path
) -> None:
    """Neither AwsSolutions nor Serverless reports anything that no construct suppresses."""
    app = new_stage(stage, tmp_path, override).api.node.root
    assert isinstance(app, App)
    assert findings(app, tmp_path) == []


def test_the_rules_find_something_where_there_is_something(tmp_path: Path) -> None:
    """A function without suppressions has findings of both rule sets."""
    app = App(outdir=str(tmp_path))
    lambda_.Function(
        Stack(app, "Plain"),
        "Function",
        runtime=lambda_.Runtime.PYTHON_3_9,
        handler="index.handler",
        code=lambda_.Code.from_inline("handler = print"),
    )
    found = json.dumps(findings(app, tmp_path))
    assert "AwsSolutions-L1" in found
    assert "Serverless-LambdaTracing" in found


def findings(app: App, folder: Path) -> list[str]:
    """List the open findings of both rule sets."""
    for pack in (cdk_nag.AwsSolutionsChecks, cdk_nag.ServerlessChecks):
        Validations.of(app).add_plugins(pack(app))
    with suppress(RuntimeError):  # that there are findings; they are in the report
        app.synth()
    reports = json.loads((folder / "validation-report.json").read_text())["pluginReports"]
    assert {report["pluginName"] for report in reports} >= {"AwsSolutions", "Serverless"}
    return [json.dumps(found) for report in reports for found in report["violations"]]
