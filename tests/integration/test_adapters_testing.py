"""The fixtures of lambda_pg.testing, as a user's tests get them."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from awslambdaric.lambda_context import LambdaContext as RealContext
from lambda_pg import ConfigurationError, Database, Settings, StatementRefusedError, _throwaway
from lambda_pg._throwaway import ServerError, running
from lambda_pg.testing import LambdaContext, Server

from tests.support.waiting import wait_until

pytest_plugins = ["lambda_pg.testing"]

PATHS = os.pathsep.join(map(str, sys.path))
ONLY_PYTEST = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
"""The plugins that are installed here (hypothesis, xdist and others) take half of a run's time."""

ONE_TEST = """
import psycopg

def test_the_server_answers(lambda_pg_server, lambda_pg_environment):
    from lambda_pg import Database

    assert Database.from_env().execute("SELECT 1").fetchone() == (1,)
"""


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a developer's shell may hold."""
    monkeypatch.setenv("PGHOST", "production.internal")
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    monkeypatch.setenv("LAMBDA_PG_SECRET_ARN", "arn:aws:secretsmanager:eu-west-1:1:secret:real")
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "function-under-test")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of someone else's, with one test."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["lambda_pg.testing"]\n')
    (tmp_path / "test_one.py").write_text(ONE_TEST)
    return tmp_path


def run_tests(folder: Path, **environment: str) -> str:
    """Run a project's tests, and return what pytest prints."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error"]
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | ONLY_PYTEST | {"PYTHONPATH": PATHS} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


@pytest.mark.usefixtures("shell", "lambda_pg_environment")
def test_a_handler_meets_the_test_server_and_no_other() -> None:
    """Whatever the shell says, `Database.from_env()` is the throwaway server, strictly."""
    for direct in (False, True):
        db = Database.from_env(direct=direct)
        row = db.execute("SELECT current_user, current_setting('fsync')").fetchone()
        assert row == ("postgres", "off")
        db.close()
    assert Settings.from_env().strict
    assert Settings.from_env().profile == "pgbouncer"


@pytest.mark.usefixtures("lambda_pg_environment")
def test_what_would_leak_through_a_pooler_is_refused() -> None:
    """The handler's tests say it before the pooler does."""
    db = Database.from_env()
    with pytest.raises(StatementRefusedError):
        db.execute("SET work_mem = '8MB'")
    db.close()


def test_the_environment_is_put_back() -> None:
    """After a test with the environment there is none."""
    with pytest.raises(ConfigurationError):
        Settings.from_env({name: os.environ[name] for name in os.environ if "PG" in name})


def test_the_context_is_like_lambda_s(lambda_context: LambdaContext) -> None:
    """It has what AWS's runtime client hands out, and its time runs."""
    real = RealContext("id", None, None, 0)
    data = {name for name in vars(real) if not name.startswith("_")}
    assert data <= {name for name in dir(lambda_context) if not name.startswith("_")}
    assert 29_000 < lambda_context.get_remaining_time_in_millis() <= 30_000
    assert replace(lambda_context, seconds=0).get_remaining_time_in_millis() == 0
    assert lambda_context.aws_request_id != LambdaContext().aws_request_id


@pytest.mark.parametrize("lambda_context", [1.5], indirect=True)
def test_a_context_can_be_short(lambda_context: LambdaContext) -> None:
    """An indirect parameter is the invocation's seconds."""
    assert 500 < lambda_context.get_remaining_time_in_millis() <= 1500


def test_a_server_of_one_s_own_is_taken(project: Path, lambda_pg_server: Server) -> None:
    """LAMBDA_PG_TEST_URL needs no server programs, and no TLS on loopback."""
    url = lambda_pg_server.url.removesuffix("?sslmode=disable")
    shown = run_tests(project, LAMBDA_PG_TEST_URL=url, PATH="")
    assert "1 passed" in shown


def test_a_url_that_cannot_be_read_is_named(project: Path) -> None:
    """The message says which part is wrong, and shows no password."""
    shown = run_tests(project, LAMBDA_PG_TEST_URL="mysql://root:canary@db/app")
    assert "LAMBDA_PG_TEST_URL does not begin with postgresql://" in shown
    assert "canary" not in shown


@pytest.mark.parametrize(
    ("host", "mode"), [("127.0.0.1", "?sslmode=require"), ("127.1", "")], ids=["asked", "unnamed"]
)
def test_a_server_without_tls_is_refused_with_a_remedy(
    project: Path, lambda_pg_server: Server, host: str, mode: str
) -> None:
    """Once, before the tests, by a message that says what to write behind the URL."""
    url = lambda_pg_server.url.removesuffix("?sslmode=disable").replace("127.0.0.1", host) + mode
    shown = run_tests(project, LAMBDA_PG_TEST_URL=url)
    assert "LAMBDA_PG_TEST_URL: cannot connect" in shown
    assert "server does not support SSL" in shown
    assert "Add ?sslmode=disable to the URL" in shown
    assert "Traceback" not in shown


def test_a_socket_in_the_url_is_refused_with_a_remedy(project: Path) -> None:
    """The layer connects over TCP."""
    shown = run_tests(project, LAMBDA_PG_TEST_URL="postgresql:///app?host=/run/postgresql")
    assert "LAMBDA_PG_TEST_URL names a Unix socket" in shown
    assert "localhost" in shown


def test_no_server_is_an_error_with_a_remedy(project: Path) -> None:
    """It names the places that were searched and the two ways out, in place of a traceback."""
    with (project / "conftest.py").open("a") as conftest:
        conftest.write("import lambda_pg._throwaway\n")
        conftest.write("lambda_pg._throwaway._folders = lambda: iter(())\n")
    shown = run_tests(project)
    assert re.search(r"no PostgreSQL server was found(?s:.)*apt(?s:.)*LAMBDA_PG_TEST_URL", shown)
    assert "Traceback" not in shown
    assert "_throwaway.py" not in shown


def test_a_server_that_does_not_start_shows_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is the server's own."""
    monkeypatch.setattr(_throwaway, "_free_port", lambda: -1)
    with pytest.raises(ServerError, match="port"), running():
        pass


def test_nothing_is_left_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the folder nor the process, though a client is still there."""
    folders: list[str] = []
    make = tempfile.mkdtemp

    def remember(**options: str) -> str:
        folders.append(make(**options))
        return folders[0]

    monkeypatch.setattr(tempfile, "mkdtemp", remember)
    with running() as url:
        client = psycopg.connect(url)
        began = time.monotonic()
    assert time.monotonic() - began < _throwaway.STOP_TIMEOUT / 2
    with pytest.raises(psycopg.OperationalError):
        client.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(url)
    assert not Path(folders[0]).exists()


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="only setpriv (Linux) can promise it")
def test_a_killed_test_run_leaves_no_server() -> None:
    """The kernel ends the server with the process that started it."""
    probe = (
        "import os; from lambda_pg import _throwaway;"
        "wait = _throwaway._wait;"
        "_throwaway._wait = lambda *a: (wait(*a), print(a[2].parent, flush=True));"
        "server = _throwaway.running(); server.__enter__();"
        "os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", probe],
        env=os.environ | {"PYTHONPATH": PATHS},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    folder = Path(killed.stdout.strip())
    assert folder.name.startswith("lambda-pg-")
    last = folder / "data" / "postmaster.pid"
    wait_until(lambda: not last.exists(), what="the server's end")
    shutil.rmtree(folder)
