"""Another app in the same cloud, deployed by the CDK command line: its functions join in."""

import json
import platform
import sys
import uuid
from collections.abc import Iterator

import pytest

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.http.caller import call
from tests.support.cdk import cdk
from tests.support.place import Place

EXAMPLE = PROJECT / "examples" / "cdk"
WAYS = ("OneCall", "ByParameters")

pytestmark = pytest.mark.timeout(600)  # two deployments, where the machine is busy


@pytest.fixture(scope="module")
def cloud(whole: Place) -> LocalCloud:
    """The cloud that the command line has started."""
    return whole.cloud


@pytest.fixture(scope="module")
def orders(cloud: LocalCloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Deploy the example as its page says; give its functions' names by the way they joined."""
    folder = tmp_path_factory.mktemp("orders")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    context = {"stage": "local", "runtime": version, "architecture": machine()}
    assembly = str(folder / "cdk.out")
    options = ["--app", f"env PYTHONPATH={PROJECT} {sys.executable} app.py", "--output", assembly]
    for name, value in context.items():
        options += ["--context", f"{name}={value}"]
    cdk(cloud, folder, "deploy", "--require-approval", "never", *options, app=EXAMPLE)
    cloud.reconcile()
    functions = cloud.client("lambda").list_functions()["Functions"]
    names = [function["FunctionName"] for function in functions]
    yield {way: next(name for name in names if f"Orders-{way}" in name) for way in WAYS}
    cdk(cloud, folder, "destroy", "--all", "--force", "--app", assembly)


def machine() -> str:
    """Name this machine's processor as Lambda does."""
    return "arm64" if platform.machine() in {"arm64", "aarch64"} else "x86_64"


@pytest.mark.parametrize("way", WAYS)
def test_its_function_reads_through_the_pooler(
    cloud: LocalCloud, orders: dict[str, str], way: str
) -> None:
    """The row of its owner only."""
    subject = str(uuid.uuid4())
    created = call(cloud.url, "POST", "/users", cloud.token(subject), {"name": "Ada"})
    identifier = created.json()["id"]
    assert ask(cloud, orders[way], identifier, subject) == (200, {"name": "Ada"})
    assert ask(cloud, orders[way], identifier, str(uuid.uuid4()))[0] == 404


def ask(cloud: LocalCloud, function: str, identifier: str, subject: str) -> tuple[int, object]:
    """Invoke a function of the example."""
    answer = cloud.invoke(function, {"id": identifier, "sub": subject})
    assert answer["function_error"] is None, answer
    return answer["payload"]["statusCode"], json.loads(answer["payload"]["body"])


def test_the_first_app_is_not_touched(cloud: LocalCloud, orders: dict[str, str]) -> None:
    """Its API answers, and its own pooler is the one that runs."""
    token = cloud.token(str(uuid.uuid4()))
    assert call(cloud.url, "GET", "/users", token).status == 200
    assert set(orders.values()) <= set(cloud.status()["functions"])
