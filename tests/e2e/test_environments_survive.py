"""Cold, thawed and after a password change: each environment serves its next request."""

import json
import secrets
import uuid
from collections.abc import Callable

import psutil
import psycopg
import pytest
from psycopg import sql

from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.http.caller import Answer, call
from tests.support.waiting import wait_until


@pytest.fixture
def get(cloud: LocalCloud) -> Callable[[], Answer]:
    """Ask for a page of users."""
    token = cloud.token(str(uuid.uuid4()))
    return lambda: call(cloud.url, "GET", "/users", token)


def only_environment(cloud: LocalCloud, start: str) -> psutil.Process:
    """End what there is and open one environment."""
    cloud.end_environments("users")
    (pid,) = cloud.environments("users", 1, "cold" if start == "cold" else "restored")
    return psutil.Process(pid)


@pytest.mark.parametrize("start", ["cold", "restored"])
def test_a_new_environment_serves_its_first_request(
    cloud: LocalCloud, get: Callable[[], Answer], start: str
) -> None:
    """Cold or restored, the first request finds its way to the database."""
    environment = only_environment(cloud, start)
    assert get().status == 200
    assert cloud.status()["functions"]["users"] == 1
    assert environment.is_running()


@pytest.mark.parametrize("start", ["cold", "restored"])
def test_a_thawed_environment_whose_connection_was_closed_serves_the_next(
    cloud: LocalCloud, get: Callable[[], Answer], start: str
) -> None:
    """Frozen while the pooler went away and came back, it notices before it sends."""
    environment = only_environment(cloud, start)
    assert get().status == 200
    wait_until(lambda: environment.status() == psutil.STATUS_STOPPED, what="the freeze")
    cloud.pooler("restart")
    assert get().status == 200
    assert cloud.status()["functions"]["users"] == 1
    assert environment.is_running()


def test_a_thawed_environment_outlives_its_backend(
    cloud: LocalCloud, get: Callable[[], Answer]
) -> None:
    """The database ended every backend meanwhile, as in a failover."""
    only_environment(cloud, "restored")
    assert get().status == 200
    with psycopg.connect(cloud.status()["postgres"]["dsn"], autocommit=True) as admin:
        ended = admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s",
            ["lambda_pg_user"],
        ).fetchall()
    assert ended
    assert get().status == 200


def test_after_a_password_change_every_environment_goes_on(
    cloud: LocalCloud, get: Callable[[], Answer]
) -> None:
    """A frozen one with the old secret, the same one reconnecting, and a cold one."""
    environment = only_environment(cloud, "restored")
    assert get().status == 200
    old = change_password(cloud)
    wait_until(lambda: not pooler_accepts(cloud, old), what="the pooler to refuse the old password")
    assert get().status == 200
    cloud.pooler("restart")  # now its connection is gone, and its cached secret is wrong
    assert get().status == 200
    assert environment.is_running()
    assert cloud.status()["functions"]["users"] == 1
    only_environment(cloud, "cold")
    assert get().status == 200


def change_password(cloud: LocalCloud) -> str:
    """Give the application user a new password, secret first; return the old one."""
    client = cloud.client("secretsmanager")
    for listed in client.list_secrets()["SecretList"]:
        text = client.get_secret_value(SecretId=listed["ARN"])["SecretString"]
        if '"lambda_pg_user"' in text:
            break
    secret = json.loads(text)
    old, secret["password"] = secret["password"], secrets.token_hex(20)
    client.put_secret_value(SecretId=listed["ARN"], SecretString=json.dumps(secret))
    with psycopg.connect(cloud.status()["postgres"]["dsn"], autocommit=True) as admin:
        statement = sql.SQL("ALTER ROLE lambda_pg_user PASSWORD {}")
        admin.execute(statement.format(sql.Literal(secret["password"])))
    return str(old)


def pooler_accepts(cloud: LocalCloud, password: str) -> bool:
    """Tell whether the pooler lets the application user in."""
    pooler = cloud.status()["pooler"]
    try:
        psycopg.connect(
            host=pooler["host"],
            port=pooler["port"],
            dbname="app",
            user="lambda_pg_user",
            password=password,
            sslmode="require",
            connect_timeout=5,
        ).close()
    except psycopg.OperationalError:
        return False
    return True
