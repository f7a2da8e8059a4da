"""The same app on an external pooler: all that is known of it are two URLs in a secret."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.http_api.issuer import AUDIENCE
from tests.support.cdk import application_login, cdk, deploy
from tests.support.place import Place

APP = "elsewhere"

pytestmark = pytest.mark.timeout(600)  # two deployments, where the machine is busy


@pytest.fixture(scope="module")
def cloud(whole: Place) -> LocalCloud:
    """The cloud that the command line has started."""
    return whole.cloud


@pytest.fixture(scope="module")
def functions(
    cloud: LocalCloud, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Deploy a second copy of the app beside the first; give its functions' names."""
    folder = tmp_path_factory.mktemp(APP)
    override = {
        "app": APP,
        "pooler": "external",
        "database": {"kind": "none"},
        "external": {"secret_arn": create_secret(cloud), "ca_file": roots(cloud, folder)},
        "identity": {"issuer": cloud.issuer.url, "audience": [AUDIENCE]},
        "baseline": False,
        "sql": {"enabled": False},
    }
    assembly = str(deploy(cloud, folder, override, "--all"))
    cloud.reconcile()
    listed = cloud.client("lambda").list_functions()["Functions"]
    mine = [each["FunctionName"] for each in listed if "Elsewhere-" in each["FunctionName"]]
    yield {
        folder: next(name for name in mine if f"-{folder.title()}" in name)
        for folder in ("users", "health", "migrate")
    }
    cdk(cloud, folder, "destroy", "--all", "--force", "--app", assembly)


def create_secret(cloud: LocalCloud) -> str:
    """Write the two URLs as they are copied from a console."""
    status, login = cloud.status(), application_login(cloud)
    user = f"{login['username']}:{quote(login['password'], safe='')}"
    pooler = status["pooler"]
    direct = status["postgres"]["dsn"].partition("?")[0]
    urls = {
        "url": f"postgresql://{user}@{pooler['host']}:{pooler['port']}/app?sslmode=require",
        "direct_url": f"{direct}?sslmode=require",
    }
    client = cloud.client("secretsmanager")
    arn: str = client.create_secret(Name=APP, SecretString=json.dumps(urls))["ARN"]
    return arn


def roots(cloud: LocalCloud, folder: Path) -> str:
    """Write the CAs of both hops into one file that a function can read."""
    client = cloud.client("ssm")
    pooler = client.get_parameter(Name="/lambda-pg/local/pooler/ca")["Parameter"]["Value"]
    file = folder / "elsewhere.pem"
    file.write_text((cloud.folder / "postgres" / "ca.pem").read_text() + pooler)
    return str(file)


def test_only_functions_were_provisioned(cloud: LocalCloud, functions: dict[str, str]) -> None:
    """The app has no database, no network and no pooler."""
    stacks = cloud.client("cloudformation").list_stacks()["StackSummaries"]
    names = {each["StackName"] for each in stacks if each["StackStatus"] == "CREATE_COMPLETE"}
    mine = {name.partition("-local-")[2] for name in names if name.startswith("Elsewhere-")}
    assert mine == {"Layer", "Pooler", "Api", "Observability"}


def test_the_same_functions_serve(cloud: LocalCloud, functions: dict[str, str]) -> None:
    """A user is created and listed, by the code that runs on the other poolers."""
    subject = str(uuid.uuid4())
    created = request(cloud, functions["users"], subject, "POST", {"name": "Ada"})
    assert created["statusCode"] == 201, created
    listed = request(cloud, functions["users"], subject, "GET")
    assert [user["name"] for user in json.loads(listed["body"])["users"]] == ["Ada"]
    health = cloud.invoke(functions["health"], {"requestContext": {"http": {"method": "GET"}}})
    assert health["payload"]["statusCode"] == 200


def request(
    cloud: LocalCloud, function: str, subject: str, method: str, body: object = None
) -> dict[str, Any]:
    """Send what the HTTP API would."""
    event = {
        "version": "2.0",
        "routeKey": "ANY /users",
        "rawPath": "/users",
        "rawQueryString": "",
        "headers": {"content-type": "application/json"},
        "requestContext": {
            "http": {"method": method, "path": "/users"},
            "stage": "$default",
            "requestId": "1",
            "authorizer": {"jwt": {"claims": {"sub": subject}}},
        },
        "body": None if body is None else json.dumps(body),
        "isBase64Encoded": False,
    }
    answer = cloud.invoke(function, event)
    assert answer["function_error"] is None, answer
    payload: dict[str, Any] = answer["payload"]
    return payload


def test_the_migration_went_by_the_direct_url(cloud: LocalCloud, functions: dict[str, str]) -> None:
    """Run again it finds nothing to do, and says at which revision the schema is."""
    answer = cloud.invoke(functions["migrate"], {})
    assert answer["function_error"] is None, answer
    assert answer["payload"]["applied"] == []


def test_no_url_is_in_a_template_or_a_variable(
    cloud: LocalCloud, functions: dict[str, str], tmp_path: Path
) -> None:
    """Only the ARN of the secret travels."""
    client = cloud.client("lambda")
    for name in functions.values():
        text = json.dumps(client.get_function_configuration(FunctionName=name), default=str)
        assert "postgresql://" not in text
        assert application_login(cloud)["password"] not in text
