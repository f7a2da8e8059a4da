"""Functions that this project has never seen, attached by the one call."""

import json
from pathlib import Path
from typing import Any

import pytest
from aws_cdk import App, Duration, Stack, Token
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_lambda as lambda_
from lambda_pg import Settings

from lambda_pg_cdk import AppError, Cap, DeployedStage, Stage
from lambda_pg_cdk.stage.loading import CDK_JSON
from tests.support.templates import Resources

PYTHON = lambda_.Runtime.PYTHON_3_13
X86 = lambda_.Architecture.X86_64


class Theirs:
    """An app of somebody else's: the project's stacks and one stack of their own."""

    def __init__(self, folder: Path, override: dict[str, Any] | None = None) -> None:
        context = json.loads(CDK_JSON.read_text())["context"]
        chosen = {**context, "stage": "dev", "override": json.dumps(override or {})}
        self.app = App(outdir=str(folder), context=chosen)
        self.stage = Stage(self.app)
        self.stack = Stack(self.app, "Orders")

    def function(self, name: str = "Orders", **options: Any) -> lambda_.Function:
        """Add a function as anybody would."""
        return new_function(self.stack, name, **options)

    def resources(self, kind: str) -> Resources:
        """Synthesise and read the resources of their stack."""
        template = self.stage.synth().get_stack_by_name("Orders").template
        found = template.get("Resources", {}).items()
        return {name: resource for name, resource in found if resource["Type"] == kind}


def new_function(scope: Stack, name: str, **options: Any) -> lambda_.Function:
    """Make a zip function with a timeout that nests."""
    settings: dict[str, Any] = {
        "runtime": PYTHON,
        "architecture": lambda_.Architecture.ARM_64,
        "handler": "index.handler",
        "code": lambda_.Code.from_inline("handler = print"),
        "timeout": Duration.seconds(10),
        **options,
    }
    return lambda_.Function(scope, name, **settings)


@pytest.fixture
def theirs(tmp_path: Path) -> Theirs:
    """Give an app with PgBouncer."""
    return Theirs(tmp_path)


def test_one_call_gives_a_function_all_it_needs(theirs: Theirs) -> None:
    """Layer, environment, network, group, secret and reservation."""
    group = theirs.stage.attach(theirs.function(), concurrency=20)
    assert isinstance(group, ec2.SecurityGroup)
    (function,) = theirs.resources("AWS::Lambda::Function").values()
    properties = function["Properties"]
    assert properties["ReservedConcurrentExecutions"] == 20
    assert len(properties["Layers"]) == 1
    assert len(properties["VpcConfig"]["SecurityGroupIds"]) == 1
    assert "Ref" in properties["VpcConfig"]["SubnetIds"]
    told = {"PGPORT": "6432", "LAMBDA_PG_CA_PEM": "-----BEGIN CERTIFICATE-----"}
    environment = {
        name: value if isinstance(value, str) else told.get(name, "value")
        for name, value in properties["Environment"]["Variables"].items()
    }
    settings = Settings.from_env(environment)
    assert (settings.sslmode, settings.profile) == ("verify-full", "pgbouncer")
    assert settings.strict
    assert settings.application_name == "orders"
    assert settings.slots == 1


def test_the_rules_belong_to_their_stack(theirs: Theirs) -> None:
    """Into the pooler's group and out of the function's; the pooler's stack knows nothing."""
    theirs.stage.attach(theirs.function(), concurrency=20)
    (rule,) = theirs.resources("AWS::EC2::SecurityGroupIngress").values()
    assert "poolersecuritygroup" in json.dumps(rule["Properties"]["GroupId"])
    assert rule["Properties"]["FromPort"] == 6432
    outputs = theirs.stage.synth().get_stack_by_name("Orders").template.get("Outputs", {})
    assert not outputs


def test_layers_of_their_own_stay(theirs: Theirs) -> None:
    """Ours comes after those that the function has, and before or after the call is the same."""
    function = theirs.function()
    arn = "arn:aws:lambda:eu-west-1:111122223333:layer:{}:1"
    one = lambda_.LayerVersion.from_layer_version_arn(theirs.stack, "One", arn.format("one"))
    two = lambda_.LayerVersion.from_layer_version_arn(theirs.stack, "Two", arn.format("two"))
    function.add_layers(one)
    theirs.stage.attach(function, concurrency=20)
    function.add_layers(two)
    (resource,) = theirs.resources("AWS::Lambda::Function").values()
    first, second, ours = resource["Properties"]["Layers"]
    assert (first, second) == (arn.format("one"), arn.format("two"))
    assert "layerarn" in json.dumps(ours)


def test_a_container_image_gets_everything_but_the_layer(theirs: Theirs) -> None:
    """It brings the package along."""
    code = lambda_.DockerImageCode.from_ecr(repository=ecr.Repository(theirs.stack, "Images"))
    function = lambda_.DockerImageFunction(
        theirs.stack, "Image", code=code, timeout=Duration.seconds(10)
    )
    theirs.stage.attach(function, concurrency=5)
    (resource,) = theirs.resources("AWS::Lambda::Function").values()
    assert "Layers" not in resource["Properties"]
    assert "PGHOST" in resource["Properties"]["Environment"]["Variables"]
    assert "VpcConfig" in resource["Properties"]


def test_without_a_cap_it_is_refused(theirs: Theirs) -> None:
    """The message names the function and the three ways to give it one."""
    theirs.stage.attach(theirs.function())
    with pytest.raises(AppError, match=r"Orders/Orders has no cap.*concurrency=20.*POOLER"):
        theirs.stage.check()
    assert not any(client.name == "Orders/Orders" for client in theirs.stage.budget.clients)


def test_its_own_reservation_is_its_cap(theirs: Theirs) -> None:
    """What the function reserves counts, and nothing else may be said of it."""
    theirs.stage.attach(theirs.function(reserved_concurrent_executions=7))
    assert theirs.stage.budget.clients[-1].concurrency == 7
    other = theirs.function("Other", reserved_concurrent_executions=7)
    theirs.stage.attach(other, concurrency=8)
    with pytest.raises(AppError, match="reserves 7, but was attached with concurrency=8"):
        theirs.stage.check()


def test_the_pooler_s_limit_can_be_the_cap(theirs: Theirs) -> None:
    """For accounts that allow no reservation."""
    theirs.stage.attach(theirs.function(), concurrency=Cap.POOLER_LIMIT)
    (function,) = theirs.resources("AWS::Lambda::Function").values()
    assert "ReservedConcurrentExecutions" not in function["Properties"]


def test_a_function_too_many_is_refused_at_its_own_line(theirs: Theirs) -> None:
    """The arithmetic names it; slots and processes multiply."""
    theirs.stage.attach(theirs.function("Fits"), concurrency=100, slots=2, processes=2)
    theirs.stage.check()
    theirs.stage.attach(theirs.function("Big"), concurrency=800)
    with pytest.raises(AppError, match=r"Orders/Big: 800 environments x 1 processes"):
        theirs.stage.check()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"timeout": Duration.seconds(3)},
            r"timeout of .* is 3; must be more than .* \(3 seconds\)",
        ),
        ({"timeout": None}, r"timeout of .* is 3; must"),
        ({"runtime": lambda_.Runtime.PYTHON_3_12}, r"python3.12 on arm64.*python3.13 on arm64"),
        ({"architecture": lambda_.Architecture.X86_64}, r"python3.13 on x86_64.*on arm64"),
    ],
)
def test_what_cannot_work_is_refused(
    theirs: Theirs, options: dict[str, Any], expected: str
) -> None:
    """At synth, with both values, instead of an import error in the function's log."""
    theirs.stage.attach(theirs.function(**options), concurrency=5)
    with pytest.raises(AppError, match=expected):
        theirs.stage.check()


@pytest.mark.parametrize(
    "number", [-5, 2.5, Token.as_number({"Ref": "Concurrency"})], ids=["negative", "half", "token"]
)
def test_a_cap_that_cannot_be_added_up_is_refused(theirs: Theirs, number: Any) -> None:
    """A value that only the deployment knows would count as anything."""
    theirs.stage.attach(theirs.function(), concurrency=number)
    with pytest.raises(AppError, match="must be a whole number of at least 0"):
        theirs.stage.check()
    assert len(theirs.stage.budget.clients) == 2


@pytest.mark.parametrize(
    "number", [-5, 2.5, Token.as_number({"Ref": "Concurrency"})], ids=["negative", "half", "token"]
)
def test_a_reservation_that_cannot_be_added_up_is_refused(theirs: Theirs, number: Any) -> None:
    """It is the function's cap, too."""
    reserved = theirs.function("Reserved")
    resource = reserved.node.default_child
    assert isinstance(resource, lambda_.CfnFunction)
    resource.reserved_concurrent_executions = number
    theirs.stage.attach(reserved)
    with pytest.raises(AppError, match="must be a whole number of at least 0"):
        theirs.stage.check()
    assert len(theirs.stage.budget.clients) == 2


@pytest.mark.parametrize("name", ["slots", "processes"])
def test_a_factor_below_one_is_refused(theirs: Theirs, name: str) -> None:
    """It would take connections of others off the sum."""
    theirs.stage.attach(theirs.function(), concurrency=5, **{name: -1})
    with pytest.raises(AppError, match=f"{name} of .* is -1; must be a whole number of at least 1"):
        theirs.stage.check()


def test_slots_are_what_was_counted(theirs: Theirs) -> None:
    """The variable is written always, so that an earlier one does not stay."""
    function = theirs.function(environment={"LAMBDA_PG_SLOTS": "50", "PGHOST": "elsewhere"})
    theirs.stage.attach(function, concurrency=5, slots=3)
    (resource,) = theirs.resources("AWS::Lambda::Function").values()
    variables = resource["Properties"]["Environment"]["Variables"]
    assert variables["LAMBDA_PG_SLOTS"] == "3"
    assert variables["PGHOST"] != "elsewhere"


def test_an_alias_is_refused(theirs: Theirs) -> None:
    """The function is attached, and its versions follow."""
    function = theirs.function()
    alias = lambda_.Alias(theirs.stack, "Alias", alias_name="x", version=function.current_version)
    theirs.stage.attach(alias, concurrency=5)  # type: ignore[arg-type]  # refused
    with pytest.raises(AppError, match="attach the function itself"):
        theirs.stage.check()


def test_a_refused_function_can_be_attached_with_less(theirs: Theirs) -> None:
    """Nothing of the refused attempt stays."""
    function = theirs.function()
    theirs.stage.attach(function, concurrency=5000)
    with pytest.raises(AppError):
        theirs.stage.check()
    theirs.stage.attach(function, concurrency=5)
    assert theirs.stage.budget.clients[-1].concurrency == 5


def test_twice_is_refused(theirs: Theirs) -> None:
    """It would count twice."""
    function = theirs.function()
    theirs.stage.attach(function, concurrency=5)
    theirs.stage.attach(function, concurrency=5)
    with pytest.raises(AppError, match="is already attached"):
        theirs.stage.check()


def test_a_function_in_another_vpc_is_refused(theirs: Theirs) -> None:
    """The pooler is not in there."""
    vpc = ec2.Vpc(theirs.stack, "Vpc", max_azs=2)
    theirs.stage.attach(theirs.function(vpc=vpc), concurrency=5)
    with pytest.raises(AppError, match="is already in a VPC"):
        theirs.stage.check()


def test_their_stack_is_deployed_after_the_migration(theirs: Theirs) -> None:
    """What it reads is published by then, and its tables are there."""
    theirs.stage.attach(theirs.function(), concurrency=5)
    assembly = theirs.stage.synth()
    dependencies = [each.id for each in assembly.get_stack_by_name("Orders").dependencies]
    assert "LambdaPg-dev-Api" in dependencies


def test_a_function_of_another_language_gets_everything_but_the_layer(theirs: Theirs) -> None:
    """The environment is a contract that any PostgreSQL client can use."""
    node = theirs.function(runtime=lambda_.Runtime.NODEJS_22_X, architecture=X86)
    theirs.stage.attach(node, concurrency=5)
    (resource,) = theirs.resources("AWS::Lambda::Function").values()
    assert "Layers" not in resource["Properties"]
    assert "PGHOST" in resource["Properties"]["Environment"]["Variables"]
    assert "VpcConfig" in resource["Properties"]
    assert theirs.stage.budget.clients[-1].connections == 10


def test_with_tokens_it_may_log_in_as_one_user(tmp_path: Path) -> None:
    """RDS Proxy with end-to-end IAM: no secret, `rds-db:connect` for what the stage published."""
    theirs = Theirs(tmp_path, {"pooler": "rds-proxy"})
    theirs.stage.attach(theirs.function(), concurrency=5)
    policies = json.dumps(theirs.resources("AWS::IAM::Policy"))
    assert "rds-db:connect" in policies
    assert "secretsmanager" not in policies
    (function,) = theirs.resources("AWS::Lambda::Function").values()
    variables = function["Properties"]["Environment"]["Variables"]
    assert variables["LAMBDA_PG_AUTH"] == "iam"
    assert "pooleruser" in variables["PGUSER"]["Ref"]


def test_another_app_attaches_within_what_is_kept_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows the stage by name, and `functions.other_clients` is its limit."""
    changed = json.loads(CDK_JSON.read_text())
    changed["context"]["stages"]["dev"]["functions"] = {"other_clients": 20}
    (tmp_path / "cdk.json").write_text(json.dumps(changed))
    monkeypatch.setattr("lambda_pg_cdk.stage.loading.CDK_JSON", tmp_path / "cdk.json")
    app = App(outdir=str(tmp_path / "out"))
    stack = Stack(app, "Elsewhere")
    stage = DeployedStage(app, "dev")
    stage.attach(new_function(stack, "Small"), concurrency=10)
    stage.synth()
    stage.attach(new_function(stack, "More"), concurrency=1)
    with pytest.raises(AppError, match=r"functions\.other_clients of the stage"):
        stage.synth()
