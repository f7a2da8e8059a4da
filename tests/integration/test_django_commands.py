"""manage.py over the backend: `test` with both aliases, `dbshell`, and what is refused."""

import ast
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django.db
import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from lambda_pg.django.base import SPATIAL, DatabaseWrapper
from lambda_pg.testing import Server
from psycopg import sql

pytest_plugins = ["lambda_pg.testing"]

ROOT = Path(__file__).resolve().parents[2]
LAYER = ROOT / "layer" / "python"

TESTS = """
from django.contrib.contenttypes.models import ContentType
from django.db import connections
from django.test import TestCase, TransactionTestCase


class InOneTransaction(TestCase):
    databases = {"default", "direct"}

    def test_both_aliases_are_one_database(self):
        for alias in self.databases:
            self.assertTrue(ContentType.objects.using(alias).exists())
            self.assertRegex(connections[alias].settings_dict["NAME"], "^test_shop(_[12])?$")


class InMany(TransactionTestCase):
    databases = {"default", "direct"}

    def test_what_one_commits_the_other_sees(self):
        ContentType.objects.using("direct").create(app_label="a", model="b")
        self.assertTrue(ContentType.objects.filter(app_label="a").exists())
"""

PSQL = """#!{python}
import sys
import psycopg
from psycopg.conninfo import conninfo_to_dict
asked = conninfo_to_dict(sys.argv[-1])
with psycopg.connect(sys.argv[-1]) as connection:
    row = connection.execute("SELECT current_database(), inet_server_port(), current_user")
    print(*row.fetchone(), asked["sslmode"], *sys.argv[1:-1])
    print("password" in sys.argv[-1])
"""


CALLED_BY_ITS_OWN_BACKENDS = {
    "convert_extent",
    "convert_extent3d",
    "geo_quote_name",
    "get_area_att_for_field",
    "get_distance_att_for_field",
}
"""Operations of GeoDjango's that are reached only after one that is refused."""


@pytest.fixture
def admin(lambda_pg_server: Server) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection to the server, on which the project `shop` has a database."""
    with psycopg.connect(lambda_pg_server.url, autocommit=True) as admin:
        before = databases(admin)
        admin.execute("CREATE DATABASE shop")
        yield admin
        for name in databases(admin) - before:
            admin.execute(sql.SQL("DROP DATABASE {} (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def project(
    admin: psycopg.Connection[Any],
    lambda_pg_environment: None,
    lambda_pg_server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The documented project, with a test added to it."""
    shutil.copytree(ROOT / "tests" / "documented" / "django_project", tmp_path / "project")
    (tmp_path / "project" / "tests.py").write_text(TESTS)
    url = lambda_pg_server.url.replace("/postgres?", "/shop?")
    for name in ("DATABASE_URL", "DIRECT_URL"):
        monkeypatch.setenv(name, url)
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "settings")
    return tmp_path / "project"


def databases(admin: psycopg.Connection[Any]) -> set[str]:
    """Name the databases of the server."""
    return {row[0] for row in admin.execute("SELECT datname FROM pg_database")}


def manage(project: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of manage.py, which nobody answers."""
    environment = os.environ | {"PYTHONPATH": f"{LAYER}:{project}"}
    return subprocess.run(
        [sys.executable, "-m", "django", *command],
        cwd=project,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("options", [[], ["--parallel=2"], ["--keepdb"]])
def test_both_aliases_are_tested_and_nothing_stays(
    project: Path, admin: psycopg.Connection[Any], options: list[str]
) -> None:
    """The test database is named after the environment's, and is dropped when both are done."""
    before = databases(admin)
    done = manage(project, "test", *options)
    assert done.returncode == 0, done.stderr
    assert "Ran 2 tests" in done.stderr
    left = databases(admin) - before
    assert left == ({"test_shop"} if "--keepdb" in options else set())


def test_projects_of_one_server_do_not_share_a_test_database(
    project: Path, admin: psycopg.Connection[Any]
) -> None:
    """What another project is testing at this moment stays as it is."""
    admin.execute("CREATE DATABASE test_")
    admin.execute("CREATE DATABASE test_postgres")
    done = manage(project, "test")
    assert done.returncode == 0, done.stderr
    assert {"test_", "test_postgres"} <= databases(admin)


def test_a_secret_names_the_test_database_too(
    project: Path, admin: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the settings there is no name then."""
    probe = (
        "import django; django.setup();"
        "from django.db import connection;"
        "from lambda_pg._credentials import CredentialCache, Credentials;"
        "CredentialCache._fetch = lambda *_, **__: Credentials('app', 'x', 'h', 1, 'orders');"
        "print(connection.creation._get_test_db_name())"
    )
    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.setenv("LAMBDA_PG_SECRET_ARN", "arn:aws:secretsmanager:eu-west-1:1:secret:a")
    environment = os.environ | {"PYTHONPATH": f"{LAYER}:{project}"}
    command = [sys.executable, "-c", probe]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "test_orders\n", done.stderr


@pytest.mark.parametrize("alias", ["default", "direct"])
def test_a_shell_is_the_environment_s_database(
    project: Path, lambda_pg_server: Server, monkeypatch: pytest.MonkeyPatch, alias: str
) -> None:
    """Not whatever listens on the machine's socket; the password is in no argument."""
    programs = project / "bin"
    programs.mkdir()
    psql = programs / "psql"
    psql.write_text(PSQL.format(python=sys.executable))
    psql.chmod(psql.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    done = manage(project, "dbshell", f"--database={alias}", "--", "-c", "SELECT 1")
    assert done.returncode == 0, done.stderr
    port = lambda_pg_server.url.partition("127.0.0.1:")[2].partition("/")[0]
    assert done.stdout.splitlines() == [f"shop {port} postgres disable -c SELECT 1", "False"]


def names_of_geodjango() -> list[str]:
    """Name what GeoDjango's own backends add to the operations of Django's."""
    source = Path(django.__file__).parent / "contrib/gis/db/backends/base/operations.py"
    (spatial,) = [
        each for each in ast.parse(source.read_text()).body if isinstance(each, ast.ClassDef)
    ]
    defined = [each.name for each in spatial.body if isinstance(each, ast.FunctionDef)]
    return sorted(set(defined) - set(dir(DatabaseWrapper.ops_class)))


@pytest.mark.parametrize("name", sorted({*names_of_geodjango(), *SPATIAL}))
def test_geodjango_is_refused(name: str) -> None:
    """By a sentence that says what to use for it, not by an attribute that is missing."""
    if name not in SPATIAL:
        assert name in CALLED_BY_ITS_OWN_BACKENDS
        return
    wrapper = DatabaseWrapper({}, alias="places")
    with pytest.raises(ImproperlyConfigured, match=r"'places'.*gis\.db\.backends\.postgis"):
        getattr(wrapper.ops, name)


def test_an_operation_that_nobody_has_is_missing_as_anywhere() -> None:
    """Django itself asks backends for what they may lack."""
    assert not hasattr(DatabaseWrapper({}).ops, "nothing")
