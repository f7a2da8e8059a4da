"""A database with this project's tables, for all tests, and the login that functions have there."""

import runpy
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from lambda_pg.testing import Server
from sqlalchemy import create_engine

pytest_plugins = ["lambda_pg.testing"]

# What lambda-pg's own migration makes, as far as tables and policies use it.
BASE = """
CREATE ROLE lambda_pg_app NOLOGIN;
CREATE ROLE test_login LOGIN PASSWORD 'test' IN ROLE lambda_pg_app;
CREATE FUNCTION current_subject() RETURNS uuid LANGUAGE sql STABLE RETURN
    (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid;
"""


@pytest.fixture(scope="session")
def tables(lambda_pg_server: Server) -> str:
    """Run the migrations; return the URL of a login that row-level security restricts."""
    with psycopg.connect(lambda_pg_server.url, autocommit=True) as connection:
        connection.execute(BASE)
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(lambda_pg_server.url)
    )
    with engine.begin() as session, Operations.context(MigrationContext.configure(session)):
        for file in sorted(Path(__file__).with_name("migrations").glob("[0-9]*.py")):
            runpy.run_path(str(file))["upgrade"]()
    engine.dispose()
    url = urlsplit(lambda_pg_server.url)
    return url._replace(netloc=f"test_login:test@{url.hostname}:{url.port}").geturl()
