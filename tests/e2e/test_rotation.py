"""Rotations of the application's password by the deployed function, under load."""

import json
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from lambda_pg_cdk.local.cloud import LocalCloud
from tests.e2e.load import load


@pytest.fixture
def single(cloud: LocalCloud) -> Iterator[None]:
    """Deploy the other strategy, and the stage's own again afterwards."""
    cloud.deploy(override={"database": {"rotation": "single"}})
    yield
    cloud.deploy(override={})


def test_two_users_take_turns_and_no_request_fails(cloud: LocalCloud) -> None:
    """After two rotations both users log in, and both have the database's limits."""
    with load(cloud) as seen:
        seen.wait_for_more()
        first = rotate(cloud)
        seen.wait_for_more()
        second = rotate(cloud)
        seen.wait_for_more()
    assert seen.failed == []
    assert {first["username"], second["username"]} == {"lambda_pg_user", "lambda_pg_user_clone"}
    for login in (first, second):
        assert limit_of(cloud, login) == "10s"


def test_one_user_gets_a_new_password_and_no_request_fails(cloud: LocalCloud, single: None) -> None:
    """The pooler and the functions follow."""
    before = application_login(cloud)
    with load(cloud) as seen:
        seen.wait_for_more()
        rotated = rotate(cloud)
        seen.wait_for_more()
        rotate(cloud)
        seen.wait_for_more()
    assert seen.failed == []
    assert rotated["username"] == before["username"]
    assert rotated["password"] != before["password"]
    assert limit_of(cloud, application_login(cloud)) == "10s"


def rotate(cloud: LocalCloud) -> dict[str, Any]:
    """Have Secrets Manager rotate the application's secret; return the new login."""
    client, arn = cloud.client("secretsmanager"), secret_arn(cloud)
    version = client.rotate_secret(SecretId=arn)["VersionId"]
    deadline = time.monotonic() + 30
    while current_version(client, arn) != version:
        assert time.monotonic() < deadline, "the rotation did not end"
        time.sleep(0.1)
    return application_login(cloud)


def current_version(client: Any, arn: str) -> str:
    """Name the version that AWSCURRENT stands at."""
    stages = client.describe_secret(SecretId=arn)["VersionIdsToStages"]
    return next(str(version) for version, names in stages.items() if "AWSCURRENT" in names)


def secret_arn(cloud: LocalCloud) -> str:
    """Read the application's secret from what the stage publishes."""
    parameter = cloud.client("ssm").get_parameter(Name="/lambda-pg/local/pooler/secret-arn")
    return str(parameter["Parameter"]["Value"])


def application_login(cloud: LocalCloud) -> dict[str, Any]:
    """Read the application's current user and password."""
    client = cloud.client("secretsmanager")
    text = client.get_secret_value(SecretId=secret_arn(cloud))["SecretString"]
    login: dict[str, Any] = json.loads(text)
    return login


def limit_of(cloud: LocalCloud, login: dict[str, Any]) -> str:
    """Log in at the database itself and read the statement timeout."""
    dsn = cloud.status()["postgres"]["dsn"]
    with psycopg.connect(
        dsn, user=login["username"], password=login["password"], dbname="app"
    ) as connection:
        row = connection.execute("SHOW statement_timeout").fetchone()
    assert row is not None
    return str(row[0])
