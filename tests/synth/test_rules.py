"""Templates against two rule sets: CloudFormation's own and AwsSolutions."""

import json
import subprocess
import sys
from pathlib import Path

import cdk_nag
import pytest
from aws_cdk import Validations

from tests.synth.conftest import ROOT, STAGES, Stage, new_app


def test_templates_are_valid_cloudformation(stages: dict[str, Stage]) -> None:
    """The linter finds nothing, with the two exceptions of .cfnlintrc."""
    templates = [str(path) for s in stages.values() for path in s.folder.glob("*.template.json")]
    linter = str(Path(sys.executable).with_name("cfn-lint"))
    result = subprocess.run(
        [linter, *templates], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.stdout == ""
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_every_finding_is_accepted_with_a_reason(stage: str, tmp_path: Path) -> None:
    """AwsSolutions reports nothing that no construct accepts."""
    app = new_app(stage, tmp_path)
    Validations.of(app).add_plugins(cdk_nag.AwsSolutionsChecks(app))
    try:
        app.synth()
    except RuntimeError as error:
        pytest.fail(str(error))
    assert findings(tmp_path) == []


def findings(folder: Path) -> list[str]:
    """List the open findings; at least one accepted one shows that the rules were asked."""
    reports = json.loads((folder / "validation-report.json").read_text())["pluginReports"]
    assert any(report["suppressedViolations"] for report in reports)
    return [json.dumps(found) for report in reports for found in report["violations"]]
