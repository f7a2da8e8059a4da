"""The function `sql` as Lambda loads it: its folder first in the path, in a new interpreter."""

import json
import os
import subprocess
import sys

import pytest

from lambda_pg_cdk import PROJECT

FUNCTION = PROJECT / "functions" / "sql"
EVENT = {
    "requestContext": {"http": {"method": "OPTIONS"}, "domainName": "api.example.com"},
    "headers": {},
}
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "PYTHONPATH": os.pathsep.join([str(FUNCTION), str(PROJECT / "layer" / "python")]),
    "PYTHONDONTWRITEBYTECODE": "1",
    "SQL_ROLES": json.dumps({"reader": "arn:reader"}),
    "SQL_KEYS_SECRET_ARN": "arn:keys",
    "SQL_KEY_LIFETIME": "60",
    "SQL_DATABASE": "app",
    "SQL_MAX_ROWS": "1000",
    "SQL_MAX_BYTES": "5000000",
    "SQL_MAX_STATEMENTS": "3",
    "SQL_MAX_REQUEST_BYTES": "1000",
    "PGHOST": "database.test",
    "PGDATABASE": "app_sql",
}

HEAVY = ("aws_lambda_powertools", "pydantic", "boto3", "gzip", "lambda_pg._flight")
"""What a cold start must not import."""


def run(program: str, **changes: str) -> str:
    """Run a program as the function does; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=ENVIRONMENT | changes,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "login", [{}, {"LAMBDA_PG_AUTH": "iam", "SQL_ROLES": '{"reader": "sql_reader"}'}]
)
def test_the_handler_answers(login: dict[str, str]) -> None:
    """With a secret and with a token, before any server or secret is there."""
    program = f"import handler; print(handler.handler({EVENT!r}, None)['statusCode'])"
    assert run(program, AWS_REGION="us-east-1", **login) == "200\n"


def test_a_cold_start_imports_little() -> None:
    """No framework, and nothing that only some answers need."""
    program = f"import handler, sys; print(sorted(set({HEAVY!r}) & sys.modules.keys()))"
    assert run(program) == "[]\n"


def test_the_first_roles_secret_is_fetched_early() -> None:
    """The layer starts to fetch it while psycopg is imported, unless the stage names another."""
    program = "import handler, os; print(os.environ['LAMBDA_PG_SECRET_ARN'])"
    assert run(program) == "arn:reader\n"
