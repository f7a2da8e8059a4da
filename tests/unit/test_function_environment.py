"""The variables of a function are written in one place, and the layer reads them."""

import re
from typing import Any

import pytest
from lambda_pg import Settings

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.stage.environment import environment

SECRET = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:x-AbCdEf"
ENDPOINT: dict[str, Any] = {"host": "pooler.test", "port": "6432", "database": "app"}


def test_only_what_is_given_is_written() -> None:
    """The layer has defaults for the rest; an endpoint is always verified."""
    assert environment(secret_arn=SECRET) == {"LAMBDA_PG_SECRET_ARN": SECRET}
    assert environment(**ENDPOINT) == {
        "PGHOST": "pooler.test",
        "PGPORT": "6432",
        "PGDATABASE": "app",
        "PGSSLMODE": "verify-full",
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"secret_arn": SECRET, "profile": "pgbouncer", "slots": 3}, {"slots": 3}),
        ({"token_user": "app", "profile": "rds-proxy"}, {"auth": "iam", "user": "app"}),
        ({"secret_arn": SECRET, "checkout_timeout": 7, "strict": True}, {"checkout_timeout": 7}),
        ({"secret_arn": SECRET, "application": "Users"}, {"application_name": "users"}),
    ],
)
def test_the_layer_reads_what_is_written(given: dict[str, Any], expected: dict[str, Any]) -> None:
    """Each value arrives in the setting of that meaning."""
    settings = Settings.from_env({**environment(**ENDPOINT, **given), "AWS_REGION": "eu-west-1"})
    assert (settings.host, settings.port, settings.dbname) == ("pooler.test", 6432, "app")
    assert {name: getattr(settings, name) for name in expected} == expected


def test_stacks_name_no_variable_of_the_layer() -> None:
    """A second place that writes them would drift."""
    named = {
        str(path.relative_to(PROJECT)): found
        for path in (PROJECT / "stacks").rglob("*.py")
        if (found := re.findall(r'"(?:PG[A-Z]+|LAMBDA_PG_[A-Z_]+)"', path.read_text()))
    }
    assert named == {}
