"""Templates against three rule sets: CloudFormation's own, AwsSolutions and Serverless."""

import json
from collections.abc import Mapping
from graphlib import CycleError
from pathlib import Path

import pytest

from lambda_pg_cdk.tools.synth import COMBINATIONS, lint
from tests.support.reduced import Template, problems, reduced
from tests.support.templates import STAGES, Stage, findings, synthesise_with_rules


def test_templates_are_valid_cloudformation(
    apps: Mapping[str, Stage], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The linter finds nothing, with the two exceptions of tools/cfnlint.yaml.

    It takes long for each resource, so it sees each different one once, with those that it names.
    """
    templates = [each for app in apps.values() for each in app.templates.values()]
    for number, template in enumerate(reduced(templates)):
        (tmp_path / f"{number}.template.json").write_text(json.dumps(template, indent=1))
    code = lint([tmp_path])
    assert (code, capfd.readouterr().out) == (0, "")


def test_templates_are_whole(app: Stage) -> None:
    """Every name is declared, every parameter is used, there is no circle, and the limits hold."""
    assert {name: problems(each) for name, each in app.templates.items() if problems(each)} == {}


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"Outputs": {"A": {"Value": {"Ref": "No"}}}}, "No is referred to, but is not there"),
        ({"Parameters": {"P": {"Type": "String"}}}, "the parameter P is not used"),
        (
            {"Outputs": {str(n): {"Value": "v"} for n in range(201)}},
            "Outputs has 201 entries; must be at most 200",
        ),
    ],
)
def test_a_template_that_is_not_whole_is_found(changed: Template, problem: str) -> None:
    """Each kind of problem is named."""
    assert problems({"Resources": {"R": {"Type": "AWS::SQS::Queue"}}, **changed}) == [problem]


def test_a_circle_is_found() -> None:
    """Of two resources that wait for each other, also through a substitution."""
    with pytest.raises(CycleError):
        problems(
            {"Resources": {"A": {"DependsOn": "B"}, "B": {"Name": {"Fn::Sub": "${A.Arn}-${!x}"}}}}
        )


def test_a_reduced_template_has_what_is_new_and_what_that_names() -> None:
    """The first is whole; a second one has the changed resource and the two that it leads to."""
    key, queue = {"Type": "AWS::KMS::Key"}, {"Type": "AWS::SQS::Queue", "Key": {"Ref": "Key"}}
    topic = {"Type": "AWS::SNS::Topic", "Of": {"Fn::GetAtt": ["Queue", "Arn"]}}
    one = {"Resources": {"Key": key, "Queue": queue, "Topic": topic, "Other": key}}
    other = {"Resources": {**one["Resources"], "Topic": {**topic, "Name": "n"}}}
    assert [*reduced([one, other, one])] == [
        one,
        {"Resources": {name: other["Resources"][name] for name in ("Key", "Queue", "Topic")}},
    ]


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
