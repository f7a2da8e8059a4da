"""All errors of an app at once: each with its file and line, without a traceback, exit code 1."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.tools.context import context_of
from tests.support.apps import OwnApp

if TYPE_CHECKING:
    from aws_cdk import aws_lambda as lambda_

HEAD = """from aws_cdk import App, Duration, Stack
from aws_cdk import aws_lambda as lambda_
import lambda_pg_cdk
TIMEOUT = Duration.seconds(10)
app = App()
stage = lambda_pg_cdk.Stage(app)
"""


@pytest.fixture
def own(tmp_path: Path) -> OwnApp:
    """Give an app of the stage `dev`."""
    return OwnApp(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> OwnApp:
    """Give an app with an error, to which tests add others: each app takes seconds."""
    shared = OwnApp(tmp_path_factory.mktemp("shared"))
    shared.stage.route("", shared.function())
    return shared


def errors(own: OwnApp) -> list[str]:
    """Return the lines of the app's errors, without their places."""
    from lambda_pg_cdk import AppError

    with pytest.raises(AppError) as caught:
        own.stage.synth()
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("The app has ")
    return lines


def function_of(own: OwnApp, seconds: int) -> "lambda_.Function":
    """Make a function in the app's own stack, with a timeout in seconds."""
    from aws_cdk import Duration

    return own.function(own.name().title(), timeout=Duration.seconds(seconds))


Wrong = Callable[[OwnApp], object]

WRONG: dict[str, tuple[Wrong, str]] = {
    "no folder": (
        lambda own: own.stage.new_function(own.name(), "functions/no-orders", concurrency=5),
        r"orders-\d+: the folder \S+/functions/no-orders does not exist",
    ),
    "no handler file": (
        lambda own: own.stage.new_function(
            own.name(), own.folder, concurrency=5, handler="main.handler"
        ),
        r"the handler of orders-\d+ is 'main.handler'; must be FILE.FUNCTION of .* no main\.py",
    ),
    "no function in the handler": (
        lambda own: own.stage.new_function(
            own.name(), own.folder, concurrency=5, handler="handler"
        ),
        r"the handler of orders-\d+ is 'handler'; must be FILE.FUNCTION",
    ),
    "no handler file of Node": (
        lambda own: own.stage.new_function(
            own.name(), own.folder, concurrency=5, runtime="nodejs22.x"
        ),
        r"the handler of orders-\d+ is 'handler.handler'; must be .* no handler\.js",
    ),
    "no Dockerfile": (
        lambda own: own.stage.new_function(
            own.name(), own.folder, concurrency=5, runtime="container"
        ),
        r"orders-\d+: \S+ has no Dockerfile",
    ),
    "no shared folder": (
        lambda own: own.stage.new_function(
            own.name(), own.folder, concurrency=5, shared=["no/shared"]
        ),
        r"orders-\d+: the folder \S+/no/shared does not exist",
    ),
    "shared folder for another language": (
        lambda own: own.stage.new_function(
            own.name(), own.folder, concurrency=5, runtime="ruby3.4", shared=["docs"]
        ),
        r"orders-\d+: shared folders are for Python only; bundle the code of ruby3\.4",
    ),
    "no cap": (
        lambda own: own.stage.new_function(own.name(), own.folder),
        r"Api/Orders-\d+ has no cap",
    ),
    "a cap that is text": (
        lambda own: own.stage.new_function(own.name(), own.folder, concurrency="5"),  # type: ignore[arg-type]  # what is refused
        r"concurrency of LambdaPg-dev-Api/Orders-\d+ is '5'; must be a whole number",
    ),
    "timeout too short": (
        lambda own: own.stage.new_function(own.name(), own.folder, concurrency=5, timeout=3),
        r"the timeout of LambdaPg-dev-Api/Orders-\d+ is 3; must be more than functions.checkout",
    ),
    "timeout too long": (
        lambda own: own.stage.new_function(own.name(), own.folder, concurrency=5, timeout=901),
        r"the timeout of orders-\d+ is 901; must be 1 to 900",
    ),
    "timeout longer than the API's": (
        lambda own: own.stage.route(
            "GET /slow",
            own.stage.new_function(own.name(), own.folder, concurrency=5, timeout=60),
        ),
        r"the timeout of LambdaPg-dev-Api/Orders-\d+ is 60; must be less than 29",
    ),
    "unknown runtime": (
        lambda own: own.stage.new_function(own.name(), own.folder, concurrency=5, runtime="node22"),
        r"the runtime of orders-\d+ is 'node22'; must be Lambda's name of one, as in 'nodejs22.x'",
    ),
    "a Python without a layer": (
        lambda own: own.stage.new_function(
            own.name(), own.folder, concurrency=5, runtime="python3.12"
        ),
        r"Api/Orders-\d+ runs python3\.12 on arm64, but the layer .* python3\.13 on arm64",
    ),
    "a name that is none": (
        lambda own: own.stage.new_function("Orders", own.folder, concurrency=5),
        r"the name of a function is 'Orders'; must be up to 40 lower-case",
    ),
    "a name of the sample": (
        lambda own: own.stage.new_function("users", own.folder, concurrency=5),
        r"the name of a function is 'users'; must be new: \S+:\d+ has it",
    ),
    "a name of the stage": (
        lambda own: own.stage.new_function("migrate", own.folder, concurrency=5),
        r"the name of a function is 'migrate'; must be another one",
    ),
    "over the budget": (
        lambda own: own.stage.new_function(own.name(), own.folder, concurrency=5000),
        r"the number of client connections that can exist is 100\d0; must be at most",
    ),
    "no cap of an own function": (
        lambda own: own.stage.attach(own.function(own.name().title())),
        r"Own/Orders-\d+ has no cap",
    ),
    "timeout of an own function too short": (
        lambda own: own.stage.attach(function_of(own, seconds=2), concurrency=5),
        r"the timeout of Own/Orders-\d+ is 2; must be more than",
    ),
    "a route without a path": (
        lambda own: own.stage.route("GET orders", own.function(own.name().title())),
        r"the route is 'GET orders'; must be a method, a space and a path",
    ),
    "a route without a method": (
        lambda own: own.stage.route("/orders", own.function(own.name().title())),
        r"the route is '/orders'; must be a method",
    ),
    "a route with an unknown method": (
        lambda own: own.stage.route("FETCH /orders", own.function(own.name().title())),
        r"the route is 'FETCH /orders'; must be",
    ),
    "a route that ends with a slash": (
        lambda own: own.stage.route("GET /orders/", own.function(own.name().title())),
        r"the route is 'GET /orders/'; must be",
    ),
    "a route with half a parameter": (
        lambda own: own.stage.route("GET /orders/{id", own.function(own.name().title())),
        r"the route is 'GET /orders/\{id'; must be",
    ),
    "a route with a parameter twice": (
        lambda own: own.stage.route("GET /orders/{id}/{id}", own.function(own.name().title())),
        r"the route is 'GET /orders/\{id\}/\{id\}'; must have each parameter once",
    ),
    "scopes of a public route": (
        lambda own: own.stage.route(
            "GET /open", own.function(own.name().title()), public=True, scopes=["open:read"]
        ),
        r"scopes for 'GET /open' is \['open:read'\]; must be \[\] for a public route",
    ),
    "too many scopes": (
        lambda own: own.stage.route(
            "GET /much", own.function(own.name().title()), scopes=[f"s{n}" for n in range(11)]
        ),
        r"scopes for 'GET /much' is \['s0', .*'s10'\]; must have at most 10 \(a quota of API",
    ),
    "a scope twice": (
        lambda own: own.stage.route(
            "GET /twice", own.function(own.name().title()), scopes=["a:b", "a:b"]
        ),
        r"scopes for 'GET /twice' is \['a:b', 'a:b'\]; must have each scope once",
    ),
    "scopes that are one text": (
        lambda own: own.stage.route(
            "GET /text", own.function(own.name().title()), scopes="orders:read"
        ),
        r"scopes for 'GET /text' is 'orders:read'; must be a list: \['orders:read'\]",
    ),
    "a scope with a space": (
        lambda own: own.stage.route(
            "GET /space", own.function(own.name().title()), scopes=["orders read"]
        ),
        r"a scope of 'GET /space' is 'orders read'; must be 1 to 64 characters of ASCII without",
    ),
    "a scope that is too long": (
        lambda own: own.stage.route(
            "GET /long", own.function(own.name().title()), scopes=["s" * 65]
        ),
        r"a scope of 'GET /long' is 's{65}'; must be 1 to 64 characters",
    ),
    "a route of the sample": (
        lambda own: own.stage.route("ANY /users/{name}", own.function(own.name().title())),
        r"the route 'ANY /users/\{name\}' matches the requests of 'ANY /users/\{id\}' at \S+:\d+",
    ),
}


def test_a_route_that_preflight_requests_would_match_is_refused(tmp_path: Path) -> None:
    """Its authorizer answers them 401. A public route has none."""
    pages = {"api": {"origins": ["https://www.example.com"]}}
    app = OwnApp(tmp_path, {"sample_api": False, **pages})
    for method in ("ANY", "OPTIONS", "GET"):
        app.stage.route(f"{method} /orders", app.function(method.title()))
    app.stage.route("ANY /open", app.function(), public=True)
    for method, line in zip(("ANY", "OPTIONS"), errors(app), strict=True):
        assert f"the route is '{method} /orders'; must have another method with api.origi" in line


@pytest.mark.parametrize("case", WRONG)
def test_an_error_is_one_line_with_its_place(shared: OwnApp, case: str) -> None:
    """What is wrong, which value, what must hold; and the line of the call, not of the library."""
    call, expected = WRONG[case]
    before = len(errors(shared))
    call(shared)
    first, *more = errors(shared)[before:]
    assert re.search(expected, first), first
    assert first.strip().startswith("tests/synth/test_app_errors.py:")
    # The arithmetic of a budget has more lines, below the first.
    assert all(line.startswith("    ") for line in more), more


def test_a_route_twice_names_the_first(shared: OwnApp) -> None:
    """By its place."""
    before = len(errors(shared))
    orders = shared.stage.new_function(shared.name(), shared.folder, concurrency=5)
    shared.stage.route("GET /orders", orders)
    shared.stage.route("GET /orders", orders)
    (line,) = errors(shared)[before:]
    places = re.findall(r"test_app_errors\.py:(\d+)", line)
    assert int(places[0]) == int(places[1]) + 1


def test_a_function_without_a_folder_can_be_used_further(shared: OwnApp) -> None:
    """So that the rest of the app is checked, too."""
    before = len(errors(shared))
    orders = shared.stage.new_function(shared.name(), "no-folder", concurrency=5)
    orders.add_environment("NAME", "value")
    shared.stage.route("GET /further", orders)
    shared.stage.route("get /further", orders)
    assert len(errors(shared)[before:]) == 2


def test_a_function_that_does_not_fit_leaves_room_for_others(shared: OwnApp) -> None:
    """It is not counted, so each function that does not fit is reported at its own line."""
    before = len(errors(shared))
    shared.stage.new_function(shared.name(), shared.folder, concurrency=5000)
    shared.stage.new_function(shared.name(), shared.folder, concurrency=5)
    found = [line for line in errors(shared)[before:] if "test_app_errors.py" in line]
    assert len(found) == 1


def test_the_cdk_writes_no_templates_of_an_app_with_errors(own: OwnApp) -> None:
    """A program that calls `app.synth()` gets the CDK's traceback, with all errors in it."""
    own.stage.new_function("orders", own.folder)
    own.stage.route("GET orders", own.function())
    with pytest.raises(RuntimeError, match=r"(?s)has no cap.*the route is 'GET orders'"):
        own.app.synth()
    assert not list(Path(own.app.outdir).glob("*.template.json"))


def run(folder: Path, text: str, **override: Any) -> subprocess.CompletedProcess[str]:
    """Run an app as the command line of the CDK does."""
    (folder / "app.py").write_text(text)
    context = context_of("dev") | {"override": json.dumps(override)}
    environment = {
        "CDK_CONTEXT_JSON": json.dumps(context),
        "CDK_OUTDIR": str(folder / "cdk.out"),
        "CDK_VALIDATION": "false",  # test_rules.py looks at what its rules find: they load slowly
        "PYTHONPATH": str(PROJECT),
        "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "20",
    }
    return subprocess.run(
        [sys.executable, "app.py"],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


SEVERAL = f"""{HEAD}
orders = stage.new_function("orders", "functions/none", concurrency=5)
stage.route("GET orders", orders)
stage.route("GET /orders/{{id}}", orders)
function = lambda_.Function(
    Stack(app, "Own"), "Function", runtime=lambda_.Runtime.PYTHON_3_13, handler="index.handler",
    architecture=lambda_.Architecture.ARM_64, code=lambda_.Code.from_inline("-"), timeout=TIMEOUT,
)
stage.attach(function)
stage.route("GET /orders/{{name}}", function)
stage.synth()
"""


def test_all_errors_are_shown_at_once(tmp_path: Path) -> None:
    """Of settings and of every call, in the order of the app, and nothing else is printed."""
    done = run(tmp_path, SEVERAL, database={"max_connections": "many"}, api={"rate_limit": 0})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    first, *lines = done.stderr.splitlines()
    assert first == "The app has 6 errors:"
    assert [line.strip().partition(" ")[0] for line in lines] == [
        "app.py:6:", "app.py:6:", "app.py:8:", "app.py:9:", "app.py:15:", "app.py:16:",
    ]  # fmt: skip
    assert "database.max_connections is 'many'; must be" in lines[0]
    assert not (tmp_path / "cdk.out" / "manifest.json").exists()


def test_an_app_without_errors_is_synthesised(tmp_path: Path) -> None:
    """The same app, mended."""
    (tmp_path / "handler.py").write_text("handler = print\n")
    mended = (
        SEVERAL.replace("functions/none", str(tmp_path))
        .replace('"GET orders"', '"POST /orders"')
        .replace("attach(function)", "attach(function, concurrency=5)")
        .replace("/orders/{name}", "/own")
    )
    done = run(tmp_path, mended)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "cdk.out" / "manifest.json").exists()


def test_what_needs_settings_ends_with_the_errors_so_far(tmp_path: Path) -> None:
    """There is no API to return where the settings are wrong."""
    text = f"{HEAD}\nstage.new_function('orders', 'none')\nstage.api.node\nstage.synth()\n"
    done = run(tmp_path, text, region="nowhere")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("The app has 3 errors:")


def test_another_error_does_not_hide_them(tmp_path: Path) -> None:
    """The traceback of an error that is not ours, and then what was found before it."""
    text = f"{HEAD}\nstage.new_function('orders', 'none', concurrency=5)\n1 / 0\n"
    done = run(tmp_path, text)
    assert done.returncode == 1
    before, _, after = done.stderr.partition("ZeroDivisionError")
    assert "Traceback" in before
    assert "The app has 1 error:\n  app.py:8: orders: the folder" in after


def test_wheels_that_cannot_be_installed_are_an_error_of_the_function(
    shared: OwnApp, tmp_path: Path
) -> None:
    """A lock without hashes, for example; pip's answer is below."""
    (tmp_path / "handler.py").write_text("handler = print\n")
    (tmp_path / "requirements.txt").write_text("packaging==25.0\n")
    before = len(errors(shared))
    shared.stage.new_function(shared.name(), tmp_path, concurrency=5)
    first, *_ = errors(shared)[before:]
    assert re.search(r"test_app_errors.py:\d+: the wheels of .* could not be installed", first)


def test_a_broken_migration_is_an_error_of_the_app(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named with its file, without a traceback."""
    from lambda_pg_cdk.stacks import assets
    from lambda_pg_cdk.stage.sources import migration_code

    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_orders.py").write_text("def upgrade(:\n")
    in_project = partial(migration_code, project=tmp_path)
    monkeypatch.setattr(assets, "migration_code", in_project)
    (first,) = errors(OwnApp(tmp_path))
    assert "0001_orders.py" in first


def test_another_app_s_errors_are_reported_the_same_way(own: OwnApp) -> None:
    """Its stage is one that somebody else deploys."""
    from lambda_pg_cdk import AppError, DeployedStage

    deployed = DeployedStage(own.app, "no-such-stage")
    deployed.attach(own.function("Other"))
    with pytest.raises(AppError) as caught:
        deployed.synth()
    assert re.search(r"test_app_errors.py:\d+: stage 'no-such-stage'.* must be one of local, dev",
                     str(caught.value))  # fmt: skip
    assert "Own/Other has no cap" in str(caught.value)


def test_an_app_without_a_cdk_json_says_how_to_make_a_project(
    own: OwnApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, as for other errors."""
    from lambda_pg_cdk import AppError, DeployedStage
    from lambda_pg_cdk.stage import loading

    monkeypatch.setattr(loading, "CDK_JSON", tmp_path / "none" / "cdk.json")
    with pytest.raises(AppError, match=r"none has no cdk.json: .* lambda_pg_cdk new my-api"):
        DeployedStage(own.app, "dev").synth()
