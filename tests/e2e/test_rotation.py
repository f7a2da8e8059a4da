"""Rotations of the application's password by the deployed function, under load."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from lambda_pg_cdk.local.cloud import LocalCloud
from tests.support.api_load import load
from tests.support.cdk import application_login, secret_arn
from tests.support.waiting import wait_until


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
    wait_until(lambda: current_version(client, arn) == version, 30, "the end of the rotation")
    return application_login(cloud)


def current_version(client: Any, arn: str) -> str:
    """Name the version that AWSCURRENT stands at."""
    stages = client.describe_secret(SecretId=arn)["VersionIdsToStages"]
    return next(str(version) for version, names in stages.items() if "AWSCURRENT" in names)


def limit_of(cloud: LocalCloud, login: dict[str, Any]) -> str:
    """Log in at the database itself and read the statement timeout."""
    dsn = cloud.status()["postgres"]["dsn"]
    with psycopg.connect(
        dsn, user=login["username"], password=login["password"], dbname="app"
    ) as connection:
        row = connection.execute("SHOW statement_timeout").fetchone()
    assert row is not None
    return str(row[0])
