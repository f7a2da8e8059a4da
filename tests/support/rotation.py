"""Rotate passwords of logins in a running cloud."""

import json
from typing import Any

import psycopg

from lambda_pg_cdk.local.cloud import LocalCloud
from tests.support.cdk import secret_arn
from tests.support.waiting import wait_until


def rotate(cloud: LocalCloud) -> dict[str, Any]:
    """Have Secrets Manager rotate the application's secret; return the new login."""
    return rotate_secret(cloud, secret_arn(cloud))


def rotate_secret(cloud: LocalCloud, arn: str) -> dict[str, Any]:
    """Have Secrets Manager rotate a secret; return the new login."""
    client = cloud.client("secretsmanager")
    version = client.rotate_secret(SecretId=arn)["VersionId"]
    wait_until(lambda: current_version(client, arn) == version, 30, "the end of the rotation")
    login: dict[str, Any] = json.loads(client.get_secret_value(SecretId=arn)["SecretString"])
    return login


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
