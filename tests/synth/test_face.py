"""The verbs of `lambda_pg_cdk.Stage`: what one call makes, in the templates of one app."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lambda_pg_cdk
from lambda_pg_cdk import PROJECT, Cap
from tests.support.apps import OwnApp

FUNCTION = "AWS::Lambda::Function"
ROUTE = "AWS::ApiGatewayV2::Route"

SETTINGS = {
    "sample_api": False,
    "python": ["3.13", "3.14"],
    "functions": {"snap_start": True},
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> OwnApp:
    """Give an app that uses every verb, after its synthesis: each takes seconds."""
    from aws_cdk import Duration
    from aws_cdk import aws_apigatewayv2_integrations as integrations
    from aws_cdk import aws_ecr as ecr
    from aws_cdk import aws_lambda as lambda_

    own = OwnApp(tmp_path_factory.mktemp("own"), SETTINGS)
    stage, folder = own.stage, own.folder
    (folder / "index.mjs").write_text("export const handler = async () => ({})\n")
    (folder / "Dockerfile").write_text("FROM public.ecr.aws/lambda/nodejs:22\n")
    orders = stage.new_function("list-orders", folder, concurrency=50, slots=2, timeout=8)
    stage.route("GET /orders/{id}", orders)
    stage.route("POST /orders", orders)
    stage.route("GET /prices/{proxy+}", orders, public=True)
    stage.new_function("newer", folder, concurrency=5, runtime="python3.14")
    node = stage.new_function(
        "node", folder, concurrency=20, runtime="nodejs22.x", handler="index.handler"
    )
    stage.route("GET /node", node)
    stage.new_function("image", folder, concurrency=4, runtime="container")
    elsewhere = integrations.HttpUrlIntegration("Elsewhere", "https://example.com")
    stage.api.add_routes(path="/elsewhere", integration=elsewhere, authorizer=stage.authorizer)
    function = own.function()
    stage.attach(function, concurrency=6)
    stage.route("GET /own/{id}", function)
    stage.route("GET /open", function, public=True)
    code = lambda_.DockerImageCode.from_ecr(repository=ecr.Repository(own.stack, "Images"))
    image = lambda_.DockerImageFunction(own.stack, "Image", code=code, timeout=Duration.seconds(10))
    stage.attach(image, concurrency=3)
    stage.synth()
    return own


def tagged(own: OwnApp, name: str) -> tuple[str, dict[str, Any]]:
    """Find a function of the API's stack by its name: its logical id and its properties."""
    tag = {"Key": "lambda-pg:function", "Value": name}
    (found,) = [
        (logical, each["Properties"])
        for logical, each in own.resources("Api", FUNCTION).items()
        if tag in each["Properties"]["Tags"]
    ]
    return found


def routes(own: OwnApp, stack: str) -> dict[str, dict[str, Any]]:
    """Read a stack's routes by their keys."""
    found = own.resources(stack, ROUTE).values()
    return {each["Properties"]["RouteKey"]: each["Properties"] for each in found}


def of_function(own: OwnApp, kind: str, logical: str) -> tuple[str, dict[str, Any]]:
    """Find the version or the alias of a function: its logical id and the resource."""
    (found,) = [
        (name, each)
        for name, each in own.resources("Api", kind).items()
        if each["Properties"]["FunctionName"] == {"Ref": logical}
    ]
    return found


def test_one_call_makes_a_function_that_is_connected(own: OwnApp) -> None:
    """Runtime and processor of the stage, layer, environment, network, reservation, log group."""
    _, properties = tagged(own, "list-orders")
    assert (properties["Runtime"], properties["Architectures"]) == ("python3.13", ["arm64"])
    assert (properties["Timeout"], properties["ReservedConcurrentExecutions"]) == (8, 50)
    assert len(properties["Layers"]) == 1
    assert len(properties["VpcConfig"]["SecurityGroupIds"]) == 1
    variables = properties["Environment"]["Variables"]
    assert variables["PGAPPNAME"] == variables["POWERTOOLS_SERVICE_NAME"] == "list-orders"
    assert variables["LAMBDA_PG_SLOTS"] == "2"
    assert "Ref" in properties["LoggingConfig"]["LogGroup"]


def test_a_function_added_later_waits_for_the_migration(own: OwnApp) -> None:
    """It gets its new code after the migration; so do its version and its alias."""
    (migration,) = own.resources("Api", "Custom::Migration")
    logical, _ = tagged(own, "list-orders")
    kinds = ("AWS::Lambda::Version", "AWS::Lambda::Alias")
    waiting = [of_function(own, kind, logical)[1] for kind in kinds]
    waiting.append(own.template("Api")["Resources"][logical])
    assert all(migration in each["DependsOn"] for each in waiting)


def test_it_is_released_behind_an_alias_that_the_route_calls(own: OwnApp) -> None:
    """The version names what it takes from other stacks; the route's integration has the alias."""
    logical, _ = tagged(own, "list-orders")
    alias, released = of_function(own, "AWS::Lambda::Alias", logical)
    assert released["Properties"]["Name"] == "live"
    _, version = of_function(own, "AWS::Lambda::Version", logical)
    assert "devlayerarn" in json.dumps(version["Properties"]["Description"])
    called = own.resources("Api", "AWS::ApiGatewayV2::Integration").values()
    uris = [each["Properties"]["IntegrationUri"] for each in called]
    assert uris.count({"Ref": alias}) == 1


def test_it_is_in_the_budget_the_dashboard_and_the_alarms(own: OwnApp) -> None:
    """As the functions that the stage begins with."""
    assert "Api/List-Orders: 50 environments" in own.stage.budget.explain()
    watched = own.template("Observability")["Resources"].values()
    boards = [json.dumps(each) for each in watched if "Dashboard" in each["Type"]]
    for name in ("list-orders", "node", "image", "health"):
        assert any(f"Function {name}" in board for board in boards), name
    names = [each["Properties"].get("AlarmName", "") for each in watched]
    assert len([name for name in names if name.startswith("LambdaPg-dev-List-Orders-")]) == 3


def test_a_function_can_be_removed_again(own: OwnApp) -> None:
    """No stack imports its name: an export in use would keep it for ever."""
    logical, _ = tagged(own, "list-orders")
    assert logical not in json.dumps(own.template("Api")["Outputs"])
    assert "functionslistorders" in json.dumps(own.template("Observability")["Parameters"])


def test_routes_are_guarded_unless_they_are_public(own: OwnApp) -> None:
    """The probe is public, too; all others have the one authorizer of the API."""
    kinds = {key: each["AuthorizationType"] for key, each in routes(own, "Api").items()}
    assert kinds == {
        "ANY /health": "NONE",
        "ANY /elsewhere": "JWT",
        "GET /node": "JWT",
        "GET /orders/{id}": "JWT",
        "POST /orders": "JWT",
        "GET /prices/{proxy+}": "NONE",
    }
    (authorizer,) = own.resources("Api", "AWS::ApiGatewayV2::Authorizer")
    assert routes(own, "Api")["GET /node"]["AuthorizerId"] == {"Ref": authorizer}


def test_the_parts_of_a_stage_can_be_read(own: OwnApp) -> None:
    """For what no verb offers: here a route to another server."""
    (authorizer,) = own.resources("Api", "AWS::ApiGatewayV2::Authorizer")
    assert routes(own, "Api")["ANY /elsewhere"]["AuthorizerId"] == {"Ref": authorizer}
    assert own.stage.config.stage == "dev"
    assert own.stage.budget.fits


def test_without_the_sample_there_is_the_probe_only(own: OwnApp) -> None:
    """No function and no route of the samples; /health is every stage's."""
    functions = own.resources("Api", FUNCTION).values()
    names = {
        each["Properties"]["Environment"]["Variables"]["POWERTOOLS_SERVICE_NAME"]
        for each in functions
    }
    assert {"health", "migrate"} <= names
    assert not names & {"users", "notes"}
    assert not [key for key in routes(own, "Api") if "/users" in key or "/notes" in key]


# A stack of the app's own


def test_a_function_of_another_stack_can_have_a_route(own: OwnApp) -> None:
    """Its stack is deployed after the API's, and reads what is published instead of exports."""
    found = routes(own, "Own")
    assert set(found) == {"GET /own/{id}", "GET /open"}
    assert found["GET /open"]["AuthorizationType"] == "NONE"
    assert "apiid" in found["GET /own/{id}"]["ApiId"]["Ref"]
    assert "apiauthorizerid" in found["GET /own/{id}"]["AuthorizerId"]["Ref"]
    assert "Fn::ImportValue" not in json.dumps(own.template("Own"))
    published = json.dumps(own.resources("Api", "AWS::SSM::Parameter"))
    assert "/lambda-pg/dev/api/id" in published
    assert "/lambda-pg/dev/api/authorizer-id" in published


def test_its_stack_is_deployed_after_the_migration(own: OwnApp) -> None:
    """And no stack of the stage waits for it: that would be a circle."""
    assert "LambdaPg-dev-Api" in own.depends("Own")
    for stack in ("Api", "Observability"):
        assert "Own" not in own.depends(f"LambdaPg-dev-{stack}")


def test_its_permission_is_for_its_route(own: OwnApp) -> None:
    """The API of the stage may invoke it, and only for these paths."""
    permissions = own.resources("Own", "AWS::Lambda::Permission").values()
    sources = [json.dumps(each["Properties"]["SourceArn"]) for each in permissions]
    assert all("apiid" in source for source in sources)
    assert sorted(source.rpartition("/*/*")[2][:9] for source in sources) == [
        '/open"]]}',
        "/own/{id}",
    ]


# Other languages


def test_a_node_function_is_one_call(own: OwnApp) -> None:
    """It has everything but the layer, and is in the budget. Lambda has no snapshots of Node."""
    _, properties = tagged(own, "node")
    assert (properties["Runtime"], properties["Handler"]) == ("nodejs22.x", "index.handler")
    assert "Layers" not in properties
    assert "SnapStart" not in properties
    assert "PGHOST" in properties["Environment"]["Variables"]
    assert "VpcConfig" in properties
    assert "Api/Node: 20 environments" in own.stage.budget.explain()


def test_a_container_image_is_one_call(own: OwnApp) -> None:
    """The deployment builds the folder's Dockerfile for the stage's processor."""
    _, properties = tagged(own, "image")
    assert (properties["PackageType"], properties["Architectures"]) == ("Image", ["arm64"])
    assert "Layers" not in properties
    assert "PGHOST" in properties["Environment"]["Variables"]
    assert "Api/Image: 4 environments" in own.stage.budget.explain()


def test_an_image_of_another_stack_attaches(own: OwnApp) -> None:
    """As any function does."""
    functions = own.resources("Own", FUNCTION).values()
    (image,) = [each for each in functions if each["Properties"].get("PackageType") == "Image"]
    assert image["Properties"]["ReservedConcurrentExecutions"] == 3
    assert "PGHOST" in image["Properties"]["Environment"]["Variables"]


# Several Pythons


def test_each_python_has_its_layer(own: OwnApp) -> None:
    """The first keeps its published name, so that other apps notice nothing."""
    layers = own.resources("Layer", "AWS::Lambda::LayerVersion").values()
    built = [each["Properties"]["CompatibleRuntimes"] for each in layers]
    assert sorted(built) == [["python3.13"], ["python3.14"]]
    parameters = own.resources("Layer", "AWS::SSM::Parameter").values()
    names = sorted(each["Properties"]["Name"] for each in parameters)
    assert names == ["/lambda-pg/dev/layer/arn", "/lambda-pg/dev/layer/python3.14/arn"]


@pytest.mark.parametrize(
    ("name", "parameter"), [("list-orders", "devlayerarn"), ("newer", "layerpython314arn")]
)
def test_a_function_has_the_layer_of_its_python(own: OwnApp, name: str, parameter: str) -> None:
    """Its version names that layer, so that a new one reaches the alias."""
    logical, properties = tagged(own, name)
    (layer,) = properties["Layers"]
    assert parameter in json.dumps(layer)
    _, version = of_function(own, "AWS::Lambda::Version", logical)
    assert parameter in json.dumps(version["Properties"]["Description"])
    assert properties["SnapStart"] == {"ApplyOn": "PublishedVersions"}


# The package


def test_the_face_starts_no_cdk_until_it_is_used() -> None:
    """`import lambda_pg_cdk` is for tools, too."""
    program = (
        "import sys, lambda_pg_cdk, lambda_pg_cdk.stage.budget\n"
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
    """The tool runs app.py; in another process, as the CDK reads its environment at its start."""
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
    environment = {
        **os.environ,
        "CDK_VALIDATION": "false",  # test_rules.py looks at what its rules find: they load slowly
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Api/Orders: 7 environments" in done.stdout
    assert "Api/Users: 500 environments" in done.stdout
