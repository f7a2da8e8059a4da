"""The verbs of `lambda_pg_cdk.Stage`: what one call makes, and what it cannot be told wrong."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aws_cdk import Duration
from aws_cdk import aws_apigatewayv2_integrations as integrations
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_lambda as lambda_

import lambda_pg_cdk
from lambda_pg_cdk import PROJECT, Cap
from tests.support.apps import OwnApp

FUNCTION = "AWS::Lambda::Function"
ROUTE = "AWS::ApiGatewayV2::Route"


@pytest.fixture
def own(tmp_path: Path) -> OwnApp:
    """Give an app of the stage `dev`, without the sample."""
    return OwnApp(tmp_path, {"sample_api": False})


def tagged(own: OwnApp, name: str) -> tuple[str, dict[str, Any]]:
    """Find a function of the API's stack by its name: its logical id and its resource."""
    (found,) = [
        (logical, each)
        for logical, each in own.resources("Api", FUNCTION).items()
        if {"Key": "lambda-pg:function", "Value": name} in each["Properties"]["Tags"]
    ]
    return found


def test_one_call_makes_a_function_that_is_connected(own: OwnApp) -> None:
    """Runtime and processor of the stage, layer, environment, network, reservation, log group."""
    own.stage.new_function("list-orders", own.folder, concurrency=50, slots=2, timeout=8)
    _, resource = tagged(own, "list-orders")
    properties = resource["Properties"]
    assert (properties["Runtime"], properties["Architectures"]) == ("python3.13", ["arm64"])
    assert (properties["Timeout"], properties["ReservedConcurrentExecutions"]) == (8, 50)
    assert len(properties["Layers"]) == 1
    assert len(properties["VpcConfig"]["SecurityGroupIds"]) == 1
    variables = properties["Environment"]["Variables"]
    assert variables["PGAPPNAME"] == variables["POWERTOOLS_SERVICE_NAME"] == "list-orders"
    assert variables["LAMBDA_PG_SLOTS"] == "2"
    assert "Ref" in properties["LoggingConfig"]["LogGroup"]


def test_a_function_added_later_waits_for_the_migration(own: OwnApp) -> None:
    """It gets its new code after the migration, and so do its role, its version and its alias."""
    own.stage.new_function("orders", own.folder, concurrency=5)
    logical, resource = tagged(own, "orders")
    template = own.template("Api")["Resources"]
    (migration,) = [name for name, each in template.items() if each["Type"] == "Custom::Migration"]
    assert migration in resource["DependsOn"]
    versions = [
        each for each in template.values() if each["Properties"].get("FunctionName") == ref(logical)
    ]
    assert len(versions) == 2
    assert all(migration in each["DependsOn"] for each in versions)


def ref(logical: str) -> dict[str, str]:
    """Write a reference."""
    return {"Ref": logical}


def test_it_is_released_behind_an_alias_that_the_route_calls(own: OwnApp) -> None:
    """The version names what it takes from other stacks; the route's integration has the alias."""
    orders = own.stage.new_function("orders", own.folder, concurrency=5)
    own.stage.route("GET /orders/{id}", orders)
    logical, _ = tagged(own, "orders")
    ((alias, released),) = [
        (name, each)
        for name, each in own.resources("Api", "AWS::Lambda::Alias").items()
        if each["Properties"]["FunctionName"] == ref(logical)
    ]
    assert released["Properties"]["Name"] == "live"
    versions = own.resources("Api", "AWS::Lambda::Version").values()
    (version,) = [each for each in versions if each["Properties"]["FunctionName"] == ref(logical)]
    assert "layerarn" in json.dumps(version["Properties"]["Description"])
    integrations = own.resources("Api", "AWS::ApiGatewayV2::Integration").values()
    assert ref(alias) in [each["Properties"]["IntegrationUri"] for each in integrations]


def test_it_is_in_the_budget_the_dashboard_and_the_alarms(own: OwnApp) -> None:
    """As the functions that the stage begins with."""
    own.stage.new_function("orders", own.folder, concurrency=50)
    assert "Api/Orders: 50 environments" in own.stage.budget.explain()
    watched = own.template("Observability")["Resources"].values()
    boards = [json.dumps(each) for each in watched if "Dashboard" in each["Type"]]
    assert any("Function orders" in board and "Function health" in board for board in boards)
    names = [each["Properties"].get("AlarmName", "") for each in watched]
    assert len([name for name in names if name.startswith("LambdaPg-dev-Orders-")]) == 3


def test_a_function_can_be_removed_again(own: OwnApp) -> None:
    """No stack imports its name: an export in use would keep it for ever."""
    own.stage.new_function("orders", own.folder, concurrency=5)
    logical, _ = tagged(own, "orders")
    assert logical not in json.dumps(own.template("Api")["Outputs"])
    assert "functionsorders" in json.dumps(own.template("Observability")["Parameters"])


def test_routes_are_guarded_unless_they_are_public(own: OwnApp) -> None:
    """One integration for each function, however many routes lead to it."""
    orders = own.stage.new_function("orders", own.folder, concurrency=5)
    own.stage.route("GET /orders/{id}", orders)
    own.stage.route("POST /orders", orders)
    own.stage.route("GET /prices/{proxy+}", orders, public=True)
    routes = {
        each["Properties"]["RouteKey"]: each["Properties"]
        for each in own.resources("Api", ROUTE).values()
    }
    assert {key: each["AuthorizationType"] for key, each in routes.items()} == {
        "ANY /health": "NONE",
        "GET /orders/{id}": "JWT",
        "POST /orders": "JWT",
        "GET /prices/{proxy+}": "NONE",
    }
    assert len(own.resources("Api", "AWS::ApiGatewayV2::Integration")) == 2
    assert len(own.resources("Api", "AWS::ApiGatewayV2::Authorizer")) == 1


def test_without_the_sample_there_is_the_probe_only(own: OwnApp) -> None:
    """No function and no route of the sample; /health is every stage's."""
    functions = own.resources("Api", FUNCTION).values()
    names = {
        each["Properties"]["Environment"]["Variables"]["POWERTOOLS_SERVICE_NAME"]
        for each in functions
    }
    assert {"health", "migrate"} <= names
    assert "users" not in names
    (route,) = own.resources("Api", ROUTE).values()
    assert route["Properties"]["RouteKey"] == "ANY /health"


def test_the_parts_of_a_stage_can_be_read(own: OwnApp) -> None:
    """For what no verb offers."""
    assert own.stage.config.stage == "dev"
    assert own.stage.budget.fits
    elsewhere = integrations.HttpUrlIntegration("Elsewhere", "https://example.com")
    own.stage.api.add_routes(
        path="/elsewhere", integration=elsewhere, authorizer=own.stage.authorizer
    )
    (route,) = [
        each["Properties"]
        for each in own.resources("Api", ROUTE).values()
        if each["Properties"]["RouteKey"] == "ANY /elsewhere"
    ]
    (authorizer,) = own.resources("Api", "AWS::ApiGatewayV2::Authorizer")
    assert route["AuthorizerId"] == ref(authorizer)


# A stack of the app's own


def test_a_function_of_another_stack_can_have_a_route(own: OwnApp) -> None:
    """Its stack is deployed after the API's, and reads what is published instead of exports."""
    function = own.function()
    own.stage.attach(function, concurrency=5)
    own.stage.route("GET /own/{id}", function)
    own.stage.route("GET /open", function, public=True)
    template = own.template("Own")
    routes = {
        each["Properties"]["RouteKey"]: each["Properties"]
        for each in template["Resources"].values()
        if each["Type"] == ROUTE
    }
    assert set(routes) == {"GET /own/{id}", "GET /open"}
    assert "apiid" in routes["GET /open"]["ApiId"]["Ref"]
    assert "apiauthorizerid" in routes["GET /own/{id}"]["AuthorizerId"]["Ref"]
    assert "Fn::ImportValue" not in json.dumps(template)
    assert "LambdaPg-dev-Api" in own.depends("Own")
    assert "Own" not in own.depends("LambdaPg-dev-Api")
    published = json.dumps(own.resources("Api", "AWS::SSM::Parameter"))
    assert "/lambda-pg/dev/api/id" in published
    assert "/lambda-pg/dev/api/authorizer-id" in published


def test_its_permission_is_for_its_route(own: OwnApp) -> None:
    """The API of the stage may invoke it, and only for this path."""
    function = own.function()
    own.stage.route("GET /own/{id}", function)
    (permission,) = own.resources("Own", "AWS::Lambda::Permission").values()
    assert permission["Properties"]["Principal"] == "apigateway.amazonaws.com"
    source = json.dumps(permission["Properties"]["SourceArn"])
    assert "apiid" in source
    assert "/*/*/own/{id}" in source


# Other languages


def test_a_node_function_is_one_call(own: OwnApp) -> None:
    """It has everything but the layer, is in the budget, and its code is deployed as it is."""
    (own.folder / "index.mjs").write_text("export const handler = async () => ({})\n")
    node = own.stage.new_function(
        "node", own.folder, concurrency=20, runtime="nodejs22.x", handler="index.handler"
    )
    own.stage.route("GET /node", node)
    _, resource = tagged(own, "node")
    properties = resource["Properties"]
    assert (properties["Runtime"], properties["Handler"]) == ("nodejs22.x", "index.handler")
    assert "Layers" not in properties
    assert "PGHOST" in properties["Environment"]["Variables"]
    assert "VpcConfig" in properties
    assert "Api/Node: 20 environments" in own.stage.budget.explain()


def test_a_container_image_is_one_call(own: OwnApp) -> None:
    """The deployment builds the folder's Dockerfile for the stage's processor."""
    (own.folder / "Dockerfile").write_text("FROM public.ecr.aws/lambda/nodejs:22\n")
    own.stage.new_function("image", own.folder, concurrency=20, runtime="container")
    _, resource = tagged(own, "image")
    properties = resource["Properties"]
    assert (properties["PackageType"], properties["Architectures"]) == ("Image", ["arm64"])
    assert "Layers" not in properties
    assert "PGHOST" in properties["Environment"]["Variables"]


def test_an_image_of_a_stack_of_ones_own_attaches(own: OwnApp) -> None:
    """As any function does."""
    code = lambda_.DockerImageCode.from_ecr(repository=ecr.Repository(own.stack, "Images"))
    function = lambda_.DockerImageFunction(
        own.stack, "Image", code=code, timeout=Duration.seconds(10)
    )
    own.stage.attach(function, concurrency=3)
    (resource,) = own.resources("Own", FUNCTION).values()
    assert resource["Properties"]["ReservedConcurrentExecutions"] == 3
    assert own.stage.budget.clients[-1].concurrency == 3


def test_snapshots_are_for_runtimes_that_have_them(tmp_path: Path) -> None:
    """Lambda has none of Node."""
    own = OwnApp(tmp_path, {"functions": {"snap_start": True}})
    (own.folder / "handler.js").write_text("exports.handler = async () => ({})\n")
    own.stage.new_function("python", own.folder, concurrency=5)
    own.stage.new_function("node", own.folder, concurrency=5, runtime="nodejs22.x")
    assert "SnapStart" in tagged(own, "python")[1]["Properties"]
    assert "SnapStart" not in tagged(own, "node")[1]["Properties"]


# Several Pythons


@pytest.fixture
def two(tmp_path: Path) -> OwnApp:
    """Give an app whose stage has two versions of Python."""
    return OwnApp(tmp_path, {"python": ["3.13", "3.14"]})


def test_each_python_has_its_layer(two: OwnApp) -> None:
    """The first keeps its published name, so that other apps notice nothing."""
    two.stage.new_function("old", two.folder, concurrency=5)
    two.stage.new_function("new", two.folder, concurrency=5, runtime="python3.14")
    (layer,) = tagged(two, "old")[1]["Properties"]["Layers"]
    assert "pgdevlayerarn" in json.dumps(layer)
    (layer,) = tagged(two, "new")[1]["Properties"]["Layers"]
    assert "layerpython314arn" in json.dumps(layer)
    layers = two.resources("Layer", "AWS::Lambda::LayerVersion").values()
    built = [each["Properties"]["CompatibleRuntimes"] for each in layers]
    assert sorted(built) == [["python3.13"], ["python3.14"]]
    names = [
        each["Properties"]["Name"]
        for each in two.resources("Layer", "AWS::SSM::Parameter").values()
    ]
    assert sorted(names) == ["/lambda-pg/dev/layer/arn", "/lambda-pg/dev/layer/python3.14/arn"]


def test_a_version_names_the_layer_of_its_python(two: OwnApp) -> None:
    """So that a new layer reaches the alias."""
    two.stage.new_function("new", two.folder, concurrency=5, runtime="python3.14")
    logical, _ = tagged(two, "new")
    (version,) = [
        each
        for each in two.resources("Api", "AWS::Lambda::Version").values()
        if each["Properties"]["FunctionName"] == ref(logical)
    ]
    assert "layerpython314arn" in json.dumps(version["Properties"]["Description"])


# The package


def test_the_face_starts_no_cdk_until_it_is_used() -> None:
    """`import lambda_pg_cdk` is for tools, too."""
    program = (
        "import sys, lambda_pg_cdk, lambda_pg_cdk.stage.budget\n"
        "assert not {'aws_cdk', 'jsii'} & set(sys.modules)\n"
        "assert lambda_pg_cdk.Cap.POOLER_LIMIT\n"
        "assert not {'aws_cdk', 'jsii'} & set(sys.modules)\n"
        "assert lambda_pg_cdk.Stage\n"
        "assert 'aws_cdk' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=PROJECT, check=True)


def test_the_package_gives_every_name_that_it_promises() -> None:
    """And no other."""
    assert all(getattr(lambda_pg_cdk, name) for name in lambda_pg_cdk.__all__)
    assert lambda_pg_cdk.Cap is Cap
    with pytest.raises(AttributeError, match="no attribute 'Stages'"):
        _ = lambda_pg_cdk.Stages


def test_the_budget_of_an_app_has_its_functions(tmp_path: Path) -> None:
    """The tool runs app.py, in a process of its own: the CDK reads its environment at its start."""
    (tmp_path / "handler.py").write_text("handler = print\n")
    app = tmp_path / "app.py"
    app.write_text(
        "from aws_cdk import App\nimport lambda_pg_cdk\n"
        "stage = lambda_pg_cdk.Stage(App())\n"
        f"stage.new_function('orders', {str(tmp_path)!r}, concurrency=7)\n"
        "stage.synth()\n"
    )
    program = (
        "from pathlib import Path; from lambda_pg_cdk.tools.budget import explained;"
        f" print(explained('prod', Path({str(app)!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert "Api/Orders: 7 environments" in done.stdout
    assert "Api/Users: 500 environments" in done.stdout
