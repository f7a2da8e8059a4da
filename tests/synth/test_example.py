"""The example of another CDK app: what it attaches by the call and by hand is the same."""

import json
from typing import Any

import pytest

NAMES = ("OneCall", "ByParameters")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Synthesise the example."""
    from aws_cdk import App

    from examples.cdk.app import Orders

    app = App(outdir=str(tmp_path_factory.mktemp("example")), context={"stage": "dev"})
    Orders(app, "Orders")
    found: dict[str, Any] = app.synth().get_stack_by_name("Orders").template
    return found


def test_both_ways_give_a_function_the_same(template: dict[str, Any]) -> None:
    """Layer, subnets, reservation and environment, but for what the call sets besides."""
    one, other = (function(template, name) for name in NAMES)
    assert all("layerarn" in json.dumps(each["Layers"]) for each in (one, other))
    for name in ("ReservedConcurrentExecutions", "Runtime", "Architectures"):
        assert one[name] == other[name], name
    assert one["VpcConfig"]["SubnetIds"] == other["VpcConfig"]["SubnetIds"]
    by_call, by_hand = (each["Environment"]["Variables"] for each in (one, other))
    assert set(by_call) - set(by_hand) == {"LAMBDA_PG_CHECKOUT_TIMEOUT", "LAMBDA_PG_SLOTS"}
    for name in ("PGHOST", "PGPORT", "PGSSLMODE", "LAMBDA_PG_SECRET_ARN", "LAMBDA_PG_CA_PEM"):
        assert by_call[name] == by_hand[name], name
    # Another app looks both up: its own settings need not say what the stage's say.
    assert "poolerhost" in by_call["PGHOST"]["Ref"]
    assert "poolerport" in by_call["PGPORT"]["Ref"]


def function(template: dict[str, Any], name: str) -> dict[str, Any]:
    """Find a function's properties by the beginning of its logical id."""
    (found,) = [
        resource["Properties"]
        for logical, resource in template["Resources"].items()
        if resource["Type"] == "AWS::Lambda::Function" and logical.startswith(name)
    ]
    return dict(found)


def test_it_reads_only_what_a_stage_publishes(template: dict[str, Any]) -> None:
    """No export of another stack is used, and every parameter is of the stage."""
    assert "Fn::ImportValue" not in json.dumps(template)
    names = {
        each["Default"]
        for each in template["Parameters"].values()
        if each["Type"].startswith("AWS::SSM::Parameter::Value")
    }
    assert all(name.startswith(("/lambda-pg/dev/", "/cdk-bootstrap/")) for name in names)
