"""A developer's own PostgreSQL, and a project's tests, without any setting but the URL."""

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from lambda_pg import ConfigurationError, ConnectFailedError, Database, Settings
from lambda_pg.testing import Server

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.servers.certificates import Authority
from lambda_pg_cdk.local.servers.postgres import Postgres
from lambda_pg_cdk.migrations.new import write

pytest_plugins = ["lambda_pg.testing"]

ENCRYPTED = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
SCRIPT = """
import os, sqlalchemy
from lambda_pg import Database
import lambda_pg.sqlalchemy, django
from django.conf import settings

print(Database.from_env().execute("SELECT 'layer'").fetchone()[0])
with lambda_pg.sqlalchemy.create_engine(Database.from_env()).connect() as connection:
    print(connection.scalar(sqlalchemy.text("SELECT 'engine'")))
with sqlalchemy.create_engine("postgresql+lambda_pg://").connect() as connection:
    print(connection.scalar(sqlalchemy.text("SELECT 'dialect'")))
settings.configure(USE_TZ=True, DATABASES={
    "default": {"ENGINE": "lambda_pg.django"},
    "direct": {"ENGINE": "lambda_pg.django", "OPTIONS": {"direct": True}},
})
django.setup()
from django.db import connections
for alias in connections:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT %s", [alias])
        print(cursor.fetchone()[0])
"""


@pytest.fixture
def url(lambda_pg_server: Server) -> str:
    """The URL of a server without TLS, as a developer writes it."""
    return lambda_pg_server.url.removesuffix("?sslmode=disable")


def python(folder: Path, arguments: list[str], **environment: str) -> str:
    """Run Python as on a laptop, with no setting of AWS's or libpq's; return all that it prints."""
    path = os.pathsep.join([str(PROJECT), *sys.path])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_every_adapter_takes_a_local_url_as_it_is(url: str, tmp_path: Path) -> None:
    """The layer, SQLAlchemy and Django: no TLS, and no setting that says so."""
    shown = python(tmp_path, ["-c", SCRIPT], DATABASE_URL=url, DIRECT_URL=url)
    assert shown.split() == ["layer", "engine", "dialect", "default", "direct"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.2"])
def test_other_names_of_the_loopback_are_taken(url: str, host: str) -> None:
    """A server that listens on 127.0.0.1 only is what localhost means; 127.0.0.2 refuses."""
    settings = Settings.from_env({"DATABASE_URL": url.replace("127.0.0.1", host)})
    with closing(Database(settings)) as db:
        if host == "localhost":
            assert db.execute("SELECT 1").fetchone() == (1,)
        else:
            with pytest.raises(psycopg.OperationalError, match="refused"):
                db.execute("SELECT 1")


def test_a_function_needs_tls_on_the_loopback_too(url: str) -> None:
    """In Lambda nothing is different from before; the error names every way out."""
    environ = {
        "DATABASE_URL": url,
        "AWS_LAMBDA_FUNCTION_NAME": "f",
        "LAMBDA_PG_ALLOW_PASSWORD_IN_ENVIRONMENT": "1",
    }
    with (
        closing(Database(Settings.from_env(environ))) as db,
        pytest.raises(ConnectFailedError, match="does not support SSL") as refused,
    ):
        db.execute("SELECT 1")
    for way in ("switch TLS on", "sslmode=disable", "LAMBDA_PG_ALLOW_UNVERIFIED_TLS=1"):
        assert way in str(refused.value)
    with pytest.raises(ConfigurationError, match="LAMBDA_PG_ALLOW_UNVERIFIED_TLS"):
        Settings.from_env(environ | {"PGSSLMODE": "disable"})


def bare(dsn: str) -> str:
    """Drop the parameters of a URL."""
    return urlsplit(dsn)._replace(query="").geturl()


def test_a_local_server_with_tls_is_taken_with_tls(postgres: Postgres) -> None:
    """Its own CA need not be known; a CA that is set is verified."""
    environ = {"DATABASE_URL": bare(postgres.dsn)}
    with closing(Database(Settings.from_env(environ))) as db:
        assert db.execute(ENCRYPTED).fetchone() == (True,)
    environ["LAMBDA_PG_CA_PEM"] = postgres.ca_file.read_text()
    with closing(Database(Settings.from_env(environ))) as db:
        assert db.execute(ENCRYPTED).fetchone() == (True,)
    environ["LAMBDA_PG_CA_PEM"] = Authority.create("somebody else").pem
    with (
        closing(Database(Settings.from_env(environ))) as db,
        pytest.raises(ConnectFailedError, match="certificate verify failed") as refused,
    ):
        db.execute("SELECT 1")
    for way in ("PGSSLROOTCERT", "LAMBDA_PG_CA_PEM", "LAMBDA_PG_ALLOW_UNVERIFIED_TLS=1"):
        assert way in str(refused.value)


def test_an_unverified_server_is_accepted_where_a_setting_says_so(postgres: Postgres) -> None:
    """The second way out: encrypted, with a certificate that nobody here can check."""
    environ = {
        "AWS_LAMBDA_FUNCTION_NAME": "f",
        "DATABASE_URL": bare(postgres.dsn),
        "LAMBDA_PG_ALLOW_PASSWORD_IN_ENVIRONMENT": "1",
        "LAMBDA_PG_ALLOW_UNVERIFIED_TLS": "1",
        "PGSSLMODE": "require",
    }
    with closing(Database(Settings.from_env(environ))) as db:
        assert db.execute(ENCRYPTED).fetchone() == (True,)


HANDLER = """
from lambda_pg import Database

db = Database.from_env()


@db.bind_lambda_context
def handler(event, context):
    claims = {"sub": event["sub"]}
    db.execute("INSERT INTO orders DEFAULT VALUES", claims=claims)
    return db.execute("SELECT count(*) FROM orders", claims=claims).fetchone()[0]
"""
TEST = """
import uuid

def test_each_caller_has_its_own_orders(lambda_pg_tables, lambda_context):
    from handler import handler

    one, other = str(uuid.uuid4()), str(uuid.uuid4())
    for sub, count in ((one, 1), (other, 1), (one, 2)):
        assert handler({"sub": sub}, lambda_context) == count
"""
CONFTEST = 'pytest_plugins = ["lambda_pg.testing", "lambda_pg_cdk.migrations.testing"]\n'
PYTEST = ["-m", "pytest", "-p", "no:cacheprovider", "-q"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one migration, one handler and its test."""
    (tmp_path / "handler.py").write_text(HANDLER)
    (tmp_path / "test_handler.py").write_text(TEST)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    write("add orders", tmp_path / "migrations")
    return tmp_path


def test_a_project_s_tests_have_its_tables_and_policies(project: Path) -> None:
    """The fixture applies the project's migrations, and logs in as a function does."""
    assert "1 passed" in python(project, PYTEST)


def test_a_project_s_tests_run_on_a_server_that_is_there(
    project: Path, url: str, lambda_pg_server: Server
) -> None:
    """Again and again: the second run finds the first one's tables, and gets another password."""
    with psycopg.connect(lambda_pg_server.url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE project")
        try:
            elsewhere = urlsplit(url)._replace(path="/project").geturl()
            for _ in range(2):
                assert "1 passed" in python(project, PYTEST, LAMBDA_PG_TEST_URL=elsewhere)
        finally:
            admin.execute("DROP DATABASE project")
            for role in ("lambda_pg_test_main", "lambda_pg_app"):
                admin.execute(f"DROP ROLE IF EXISTS {role}".encode())


def test_a_broken_migration_fails_a_project_s_tests_by_its_line(project: Path) -> None:
    """Not by a traceback of the fixture."""
    file = project / "migrations" / "0001_add_orders.py"
    file.write_text(file.read_text().replace("CREATE TABLE", "CREATE TABEL"))
    shown = python(project, PYTEST)
    assert "lambda_pg_tables: migration 0001 (migrations/0001_add_orders.py, line " in shown
    assert "Traceback" not in shown


def test_bare_pytest_finds_the_fixtures(tmp_path: Path) -> None:
    """In an empty folder with two files: lambda-pg names its plugin to pytest."""
    folder = tmp_path / "lambda_pg-0.dist-info"  # as pip writes it from layer/pyproject.toml
    folder.mkdir()
    lines = (PROJECT / "layer" / "pyproject.toml").read_text().splitlines()
    begin = lines.index("[project.entry-points.pytest11]")
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: lambda-pg\nVersion: 0\n")
    (folder / "entry_points.txt").write_text("[pytest11]\n" + lines[begin + 1].replace('"', ""))
    test = tmp_path / "test_orders.py"
    test.write_text(
        "def test_it(lambda_pg_environment, lambda_context):\n"
        "    from orders import db\n"
        "    assert db.execute('SELECT 1').fetchone() == (1,)\n"
    )
    (tmp_path / "orders.py").write_text(
        "from lambda_pg import Database\ndb = Database.from_env()\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    assert "1 passed" in python(tmp_path, [*PYTEST, "-W", "error"], PYTHONPATH=path)
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["lambda_pg.testing"]\n')
    assert "1 passed" in python(tmp_path, [*PYTEST, "-W", "error"], PYTHONPATH=path)
    test.write_text("from orders import db\n\n\ndef test_it(lambda_pg_environment):\n    pass\n")
    shown = python(tmp_path, PYTEST, PYTHONPATH=path)
    assert "no database: set" in shown
    assert "Import it inside the test, which names the fixture lambda_pg_environment" in shown
