"""A pytest fixture for handlers that use tables of the project's own migrations.

`lambda_pg_tables` is `lambda_pg_environment` with two differences: the database has the base's
tables and those of the project's folder `migrations`, and DATABASE_URL is a login that the policies
bind. DIRECT_URL stays the owner's, which sees every row.

PYTEST_DONT_REWRITE: it has no assert.
"""

import os
import secrets
from urllib.parse import urlsplit

import psycopg
import pytest
from lambda_pg.testing import Server

from .revisions import BASE, Branch, MigrationError
from .roles import Login, LoginError, NeighbourError, Timeouts

LOGIN = f"lambda_pg_test_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
"""The application's login; each process that runs tests has another one."""

INSTALL = "Install what runs the migrations: pip install alembic sqlalchemy"

PATIENCE = 60.0
"""Seconds to wait for another process that migrates the same database."""


@pytest.fixture(scope="session")
def lambda_pg_migrated(lambda_pg_server: Server, pytestconfig: pytest.Config) -> str:
    """Apply the migrations once; return the URL with which a function would log in."""
    try:
        from .run import migrate  # noqa: PLC0415 - no test may need it
    except ModuleNotFoundError as error:
        pytest.fail(f"lambda_pg_tables: {error}. {INSTALL}", pytrace=False)
    login = Login(LOGIN, secrets.token_urlsafe(24))
    branches = [BASE, Branch(pytestconfig.rootpath / "migrations")]
    connection = psycopg.connect(lambda_pg_server.url, autocommit=True)
    limits = Timeouts(statement=10, lock=3, idle_in_transaction=30)  # cdk.json's defaults
    try:
        migrate(connection, lambda: login, limits, branches, patience=PATIENCE, shared=True)
    except (MigrationError, LoginError, NeighbourError) as error:
        pytest.fail(f"lambda_pg_tables: {error}", pytrace=False)
    parts = urlsplit(lambda_pg_server.url)
    place = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{login.name}:{login.password}@{place}").geturl()


@pytest.fixture
def lambda_pg_tables(
    lambda_pg_environment: None,  # noqa: ARG001 - it comes first
    lambda_pg_migrated: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Set the variables that a handler's module reads, for a database with the app's tables."""
    monkeypatch.setenv("DATABASE_URL", lambda_pg_migrated)
