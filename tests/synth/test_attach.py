"""Functions that this project has never seen, attached by the one call."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lambda_pg import Settings

from lambda_pg_cdk import Cap
from lambda_pg_cdk.stage.loading import CDK_JSON
from tests.support.apps import plain_function
from tests.support.templates import Resources

if TYPE_CHECKING:
    from aws_cdk import Stack
    from aws_cdk import aws_lambda as lambda_
    from aws_cdk.cx_api import CloudAssembly


class Theirs:
    """Another team's app: the project's stacks, and the team's stacks."""

    def __init__(self, folder: Path, override: dict[str, Any] | None = None) -> None:
        from aws_cdk import App

        from lambda_pg_cdk import Stage

        context = json.loads(CDK_JSON.read_text())["context"]
        chosen = {**context, "stage": "dev", "override": json.dumps(override or {})}
        self.app = App(outdir=str(folder), context=chosen)
        self.stage = Stage(self.app)
        self.of_stage = self.stage.budget.clients
        self.stack = self.new_stack()

    def new_stack(self, name: str = "Orders") -> Stack:
        """Begin a stack of theirs, which functions are added to from now on."""
        from aws_cdk import Stack

        self.stack = Stack(self.app, name)
        return self.stack

    def forget(self) -> None:
        """Remove their stack, the functions that were attached to the pooler, and all errors."""
        self.app.node.try_remove_child(self.stack.node.id)
        self.stage._counted._clients[:] = self.of_stage
        self.stage._problems._found.clear()

    def function(self, name: str = "Orders", **options: Any) -> lambda_.Function:
        """Add a function as anybody would."""
        return plain_function(self.stack, name, **options)

    def resources(self, kind: str) -> Resources:
        """Synthesise what is there now, and read the resources of their stack."""
        assembly = self.synth()
        return of_kind(assembly.get_stack_by_name(self.stack.stack_name).template, kind)

    def synth(self) -> CloudAssembly:
        """Synthesise what is there now, where `Stage.synth` would do so the first time only."""
        self.stage.check()
        return self.app.synth(force=True)


def of_kind(template: Mapping[str, Any], kind: str) -> Resources:
    """Find a template's resources of one type."""
    found = template.get("Resources", {}).items()
    return {name: resource for name, resource in found if resource["Type"] == kind}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    """Build an app with PgBouncer, once: it takes seconds."""
    return Theirs(tmp_path_factory.mktemp("theirs"))


@pytest.fixture
def theirs(project: Theirs) -> Iterator[Theirs]:
    """Give the app with an empty stack `Orders`, and with the project's own functions attached."""
    project.forget()
    project.stage.check()
    project.new_stack()
    yield project
    project.forget()


# What becomes of an attached function: each has its stack; all are synthesised together.


def plain(theirs: Theirs) -> None:
    """Attach a function that has nothing special."""
    theirs.stage.attach(theirs.function(), concurrency=20)


def layered(theirs: Theirs) -> None:
    """Attach a function that has a layer, and gets another one afterwards."""
    from aws_cdk import aws_lambda as lambda_

    function = theirs.function()
    one = lambda_.LayerVersion.from_layer_version_arn(theirs.stack, "One", LAYER.format("one"))
    two = lambda_.LayerVersion.from_layer_version_arn(theirs.stack, "Two", LAYER.format("two"))
    function.add_layers(one)
    theirs.stage.attach(function, concurrency=20)
    function.add_layers(two)


def image(theirs: Theirs) -> None:
    """Attach a function that is a container image."""
    from aws_cdk import Duration
    from aws_cdk import aws_ecr as ecr
    from aws_cdk import aws_lambda as lambda_

    code = lambda_.DockerImageCode.from_ecr(repository=ecr.Repository(theirs.stack, "Images"))
    function = lambda_.DockerImageFunction(
        theirs.stack, "Image", code=code, timeout=Duration.seconds(10)
    )
    theirs.stage.attach(function, concurrency=5)


def unreserved(theirs: Theirs) -> None:
    """Attach a function without a reservation."""
    theirs.stage.attach(theirs.function(), concurrency=Cap.POOLER_LIMIT)


def with_variables(theirs: Theirs) -> None:
    """Attach a function that has variables of the same names already."""
    function = theirs.function(environment={"LAMBDA_PG_SLOTS": "50", "PGHOST": "elsewhere"})
    theirs.stage.attach(function, concurrency=5, slots=3)


def multiplied(theirs: Theirs) -> None:
    """Attach a function whose environments have two processes with two slots each."""
    theirs.stage.attach(theirs.function(), concurrency=100, slots=2, processes=2)


def of_another_language(theirs: Theirs) -> None:
    """Attach a function of Node, for a processor that the layer is not built for."""
    from aws_cdk import aws_lambda as lambda_

    runtime, processor = lambda_.Runtime.NODEJS_22_X, lambda_.Architecture.X86_64
    theirs.stage.attach(theirs.function(runtime=runtime, architecture=processor), concurrency=5)


ATTACHED = (
    plain,
    layered,
    image,
    unreserved,
    with_variables,
    multiplied,
    of_another_language,
)
LAYER = "arn:aws:lambda:eu-west-1:111122223333:layer:{}:1"

Attached = Callable[[Callable[[Theirs], None]], Any]


@pytest.fixture(scope="module")
def artifact_of(project: Theirs) -> Attached:
    """Attach all of them, synthesise, and find what one of them has become."""
    project.forget()
    for attach in ATTACHED:
        project.new_stack(name_of(attach))
        attach(project)
    assembly = project.synth()
    for attach in ATTACHED:
        project.app.node.try_remove_child(name_of(attach))
    project.forget()
    return lambda attach: assembly.get_stack_by_name(name_of(attach))


def name_of(attach: Callable[[Theirs], None]) -> str:
    """Name the stack of what attaches a function."""
    return attach.__name__.replace("_", "-")


def test_one_call_gives_a_function_all_it_needs(artifact_of: Attached) -> None:
    """Layer, environment, network, group, secret and reservation."""
    (function,) = of_kind(artifact_of(plain).template, "AWS::Lambda::Function").values()
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


def test_the_rules_belong_to_their_stack(artifact_of: Attached) -> None:
    """Into the pooler's group and out of the function's; the pooler's stack knows nothing."""
    template = artifact_of(plain).template
    (rule,) = of_kind(template, "AWS::EC2::SecurityGroupIngress").values()
    assert "poolersecuritygroup" in json.dumps(rule["Properties"]["GroupId"])
    assert rule["Properties"]["FromPort"] == 6432
    assert not template.get("Outputs", {})


def test_layers_of_their_own_stay(artifact_of: Attached) -> None:
    """Ours comes after those that the function has, and before or after the call is the same."""
    (resource,) = of_kind(artifact_of(layered).template, "AWS::Lambda::Function").values()
    first, second, ours = resource["Properties"]["Layers"]
    assert (first, second) == (LAYER.format("one"), LAYER.format("two"))
    assert "layerarn" in json.dumps(ours)


def test_a_container_image_gets_everything_but_the_layer(artifact_of: Attached) -> None:
    """It brings the package along."""
    (resource,) = of_kind(artifact_of(image).template, "AWS::Lambda::Function").values()
    assert "Layers" not in resource["Properties"]
    assert "PGHOST" in resource["Properties"]["Environment"]["Variables"]
    assert "VpcConfig" in resource["Properties"]


def test_the_pooler_s_limit_can_be_the_cap(artifact_of: Attached) -> None:
    """For accounts that allow no reservation."""
    (function,) = of_kind(artifact_of(unreserved).template, "AWS::Lambda::Function").values()
    assert "ReservedConcurrentExecutions" not in function["Properties"]


def test_slots_are_what_was_counted(artifact_of: Attached) -> None:
    """The variable is written always, so that an earlier one does not stay."""
    (resource,) = of_kind(artifact_of(with_variables).template, "AWS::Lambda::Function").values()
    variables = resource["Properties"]["Environment"]["Variables"]
    assert variables["LAMBDA_PG_SLOTS"] == "3"
    assert variables["PGHOST"] != "elsewhere"
    (resource,) = of_kind(artifact_of(multiplied).template, "AWS::Lambda::Function").values()
    assert resource["Properties"]["Environment"]["Variables"]["LAMBDA_PG_SLOTS"] == "2"


def test_their_stack_is_deployed_after_the_migration(artifact_of: Attached) -> None:
    """What it reads is published by then, and its tables are there."""
    dependencies = [each.id for each in artifact_of(plain).dependencies]
    assert "LambdaPg-dev-Api" in dependencies


def test_a_function_of_another_language_gets_everything_but_the_layer(
    artifact_of: Attached, theirs: Theirs
) -> None:
    """The environment is a contract that any PostgreSQL client can use."""
    template = artifact_of(of_another_language).template
    (resource,) = of_kind(template, "AWS::Lambda::Function").values()
    assert "Layers" not in resource["Properties"]
    assert "PGHOST" in resource["Properties"]["Environment"]["Variables"]
    assert "VpcConfig" in resource["Properties"]
    of_another_language(theirs)
    assert theirs.stage.budget.clients[-1].connections == 10


# What the call returns, counts and refuses.


def test_the_call_returns_the_function_s_group(theirs: Theirs) -> None:
    """For rules to other targets."""
    from aws_cdk import aws_ec2 as ec2

    group = theirs.stage.attach(theirs.function(), concurrency=20)
    assert isinstance(group, ec2.SecurityGroup)


def refused(theirs: Theirs, words: str) -> None:
    """Check that the app has an error, in these words."""
    from lambda_pg_cdk import AppError

    with pytest.raises(AppError, match=words):
        theirs.stage.check()


def test_without_a_cap_it_is_refused(theirs: Theirs) -> None:
    """The message names the function and the three ways to give it one."""
    theirs.stage.attach(theirs.function())
    refused(theirs, r"Orders/Orders has no cap.*concurrency=20.*POOLER")
    assert not any(client.name == "Orders/Orders" for client in theirs.stage.budget.clients)


def test_its_own_reservation_is_its_cap(theirs: Theirs) -> None:
    """What the function reserves counts, and nothing else may be said of it."""
    theirs.stage.attach(theirs.function(reserved_concurrent_executions=7))
    assert theirs.stage.budget.clients[-1].concurrency == 7
    other = theirs.function("Other", reserved_concurrent_executions=7)
    theirs.stage.attach(other, concurrency=8)
    refused(theirs, "reserves 7, but was attached with concurrency=8")


def test_a_function_too_many_is_refused_at_its_own_line(theirs: Theirs) -> None:
    """The arithmetic names it; slots and processes multiply."""
    theirs.stage.attach(theirs.function("Fits"), concurrency=100, slots=2, processes=2)
    theirs.stage.check()
    theirs.stage.attach(theirs.function("Big"), concurrency=800)
    refused(theirs, r"Orders/Big: 800 environments x 1 processes")


def unfit() -> dict[str, tuple[dict[str, Any], str]]:
    """Describe functions that cannot work: what they are made with, and what the refusal says."""
    from aws_cdk import Duration
    from aws_cdk import aws_lambda as lambda_

    runtime, architecture = lambda_.Runtime, lambda_.Architecture
    return {
        "short timeout": (
            {"timeout": Duration.seconds(3)},
            r"timeout of .* is 3; must be more than .* \(3 seconds\)",
        ),
        "default timeout": ({"timeout": None}, r"timeout of .* is 3; must"),
        "python": ({"runtime": runtime.PYTHON_3_12}, r"python3.12 on arm64.*python3.13 on arm64"),
        "processor": ({"architecture": architecture.X86_64}, r"python3.13 on x86_64.*on arm64"),
    }


@pytest.mark.parametrize("problem", ["short timeout", "default timeout", "python", "processor"])
def test_what_cannot_work_is_refused(theirs: Theirs, problem: str) -> None:
    """At synth, with both values, instead of an import error in the function's log."""
    options, words = unfit()[problem]
    theirs.stage.attach(theirs.function(**options), concurrency=5)
    refused(theirs, words)


UNCOUNTABLE = pytest.mark.parametrize(
    "number", [-5, 2.5, "token"], ids=["negative", "half", "token"]
)


def given(number: Any) -> Any:
    """Return the number; for the word `token`, a token."""
    from aws_cdk import Token

    return Token.as_number({"Ref": "Concurrency"}) if number == "token" else number


@UNCOUNTABLE
def test_a_cap_that_cannot_be_added_up_is_refused(theirs: Theirs, number: Any) -> None:
    """A value that only the deployment knows would count as anything."""
    theirs.stage.attach(theirs.function(), concurrency=given(number))
    refused(theirs, "must be a whole number of at least 0")
    assert theirs.stage.budget.clients == theirs.of_stage


@UNCOUNTABLE
def test_a_reservation_that_cannot_be_added_up_is_refused(theirs: Theirs, number: Any) -> None:
    """It is the function's cap, too."""
    from aws_cdk import aws_lambda as lambda_

    reserved = theirs.function("Reserved")
    resource = reserved.node.default_child
    assert isinstance(resource, lambda_.CfnFunction)
    resource.reserved_concurrent_executions = given(number)
    theirs.stage.attach(reserved)
    refused(theirs, "must be a whole number of at least 0")
    assert theirs.stage.budget.clients == theirs.of_stage


@pytest.mark.parametrize("name", ["slots", "processes"])
def test_a_factor_below_one_is_refused(theirs: Theirs, name: str) -> None:
    """It would take connections of others off the sum."""
    theirs.stage.attach(theirs.function(), concurrency=5, **{name: -1})
    refused(theirs, f"{name} of .* is -1; must be a whole number of at least 1")


def test_an_alias_is_refused(theirs: Theirs) -> None:
    """The function is attached, and its versions follow."""
    from aws_cdk import aws_lambda as lambda_

    function = theirs.function()
    alias = lambda_.Alias(theirs.stack, "Alias", alias_name="x", version=function.current_version)
    theirs.stage.attach(alias, concurrency=5)  # type: ignore[arg-type]  # refused
    refused(theirs, "attach the function itself")


def test_a_refused_function_can_be_attached_with_less(theirs: Theirs) -> None:
    """Nothing of the refused attempt stays."""
    function = theirs.function()
    theirs.stage.attach(function, concurrency=5000)
    refused(theirs, "Orders/Orders: 5000 environments")
    theirs.stage.attach(function, concurrency=5)
    assert theirs.stage.budget.clients[-1].concurrency == 5


def test_twice_is_refused(theirs: Theirs) -> None:
    """It would count twice."""
    function = theirs.function()
    theirs.stage.attach(function, concurrency=5)
    theirs.stage.check()
    theirs.stage.attach(function, concurrency=5)
    refused(theirs, "is already attached")


def test_a_function_in_another_vpc_is_refused(theirs: Theirs) -> None:
    """The pooler is not in there."""
    from aws_cdk import aws_ec2 as ec2

    vpc = ec2.Vpc(theirs.stack, "Vpc", max_azs=2)
    theirs.stage.attach(theirs.function(vpc=vpc), concurrency=5)
    refused(theirs, "is already in a VPC")


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
    from aws_cdk import App, Stack

    from lambda_pg_cdk import AppError, DeployedStage

    changed = json.loads(CDK_JSON.read_text())
    changed["context"]["stages"]["dev"]["functions"] = {"other_clients": 20}
    (tmp_path / "cdk.json").write_text(json.dumps(changed))
    monkeypatch.setattr("lambda_pg_cdk.stage.loading.CDK_JSON", tmp_path / "cdk.json")
    app = App(outdir=str(tmp_path / "out"))
    stack = Stack(app, "Elsewhere")
    stage = DeployedStage(app, "dev")
    stage.attach(plain_function(stack, "Small"), concurrency=10)
    stage.synth()
    stage.attach(plain_function(stack, "More"), concurrency=1)
    with pytest.raises(AppError, match=r"functions\.other_clients of the stage"):
        stage.synth()
