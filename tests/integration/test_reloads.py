"""Reloads of a handler's module leave no connection: in one process, and in development servers."""

import gc
import importlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from lambda_pg import Settings

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local import processes
from tests.support.layer import PASSWORD, Admin
from tests.support.waiting import wait_until

RELOADS = int(os.environ.get("RELOADS", "10"))
"""Of each kind. One of a development server is a start of Python, so the 50 that
docs/integrations.md promises are run on demand: `make test RELOADS=50`."""

LAYER = PROJECT / "layer" / "python"
FAILED = re.compile(r"\berror\b|Traceback", re.IGNORECASE)


def connections(admin: Admin) -> int:
    """Count the connections of the tests' login at the server."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'layer_test'"
    row = admin.execute(query).fetchone()
    assert row is not None
    return int(row[0])


@pytest.fixture
def variables(settings: Settings) -> dict[str, str]:
    """The environment of a handler."""
    return {
        "PGHOST": str(settings.host),
        "PGPORT": str(settings.port),
        "PGDATABASE": str(settings.dbname),
        "PGUSER": str(settings.user),
        "PGPASSWORD": PASSWORD,
        "PGSSLROOTCERT": str(settings.sslrootcert),
    }


# In one process


HANDLER = """
from lambda_pg import Database

db = Database.from_env()


@db.bind_lambda_context
def handler(event, context):
    return db.execute("SELECT 7").fetchone()[0]
"""

ENGINE = """
from lambda_pg import Database
from lambda_pg.sqlalchemy import create_engine
from sqlalchemy import text

db = Database.from_env()
engine = create_engine(db)


@db.bind_lambda_context
def handler(event, context):
    with engine.connect() as connection:
        return connection.scalar(text("SELECT 7"))
"""

REGISTERED = f"""{HANDLER}

import builtins
builtins.registered_handlers.append(handler)
"""

TRACED = f"import opentelemetry.trace\n{HANDLER}"


def reload(module: ModuleType) -> ModuleType:
    """Run a module once more in its own namespace."""
    return importlib.reload(module)


def import_again(module: ModuleType) -> ModuleType:
    """Drop a module and import it, as reloaders do that follow dependencies."""
    del sys.modules[module.__name__]
    return importlib.import_module(module.__name__)


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Keep the garbage collector out: when it runs by itself is chance."""
    gc.disable()
    yield
    gc.enable()
    gc.collect()


@pytest.mark.parametrize("again", [reload, import_again])
@pytest.mark.parametrize(
    "source",
    [HANDLER, ENGINE, REGISTERED, TRACED],
    ids=["handler", "engine", "registered", "traced"],
)
def test_a_module_that_runs_again_leaves_no_connection(
    admin: Admin,
    variables: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uncollected: None,
    source: str,
    again: Callable[[ModuleType], ModuleType],
) -> None:
    """After so many reloads the server counts what it counted after the first import."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("builtins.registered_handlers", [], raising=False)
    name = f"reloaded_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(source)
    module = importlib.import_module(name)
    try:
        assert module.handler({}, None) == 7
        assert connections(admin) == 1
        for _ in range(RELOADS):
            module = again(module)
            assert module.handler({}, None) == 7
        wait_until(lambda: connections(admin) == 1, 10, f"one connection of {connections(admin)}")
    finally:
        module.db.close()
        del sys.modules[name]


# Development servers


UVICORN = """
import asyncio

from lambda_pg import Database

db = Database.from_env()


def answer():
    return f"{VERSION} {db.execute('SELECT 7').fetchone()[0]}"


async def app(scope, receive, send):
    body = (await asyncio.to_thread(answer)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""

FLASK = """
import sys

from flask import Flask
from lambda_pg import Database

db = Database.from_env()
app = Flask(__name__)


@app.get("/")
def answer():
    return f"{VERSION} {db.execute('SELECT 7').fetchone()[0]}"


if __name__ == "__main__":  # as `flask run --reload` does without watchdog
    app.run(port=int(sys.argv[1]), use_reloader=True, reloader_type="stat")
"""

DJANGO = """
import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from django.db import connection
from django.http import HttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DATABASES={"default": {"ENGINE": "lambda_pg.django"}},
    DEBUG=True,
    ROOT_URLCONF=__name__,
    USE_TZ=True,
)


def answer(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 7")
        return HttpResponse(f"{VERSION} {cursor.fetchone()[0]}")


urlpatterns = [path("", answer)]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
"""

PYTEST = """
import atexit
from pathlib import Path

from lambda_pg import Database

db = Database.from_env()


def test_answer():
    answer = f"{VERSION} {db.execute('SELECT 7').fetchone()[0]}"
    atexit.register(Path("answer").write_text, answer)  # ptw misses what changes during a run
"""


class Kind(NamedTuple):
    """A development server: what it runs, and how it is started on a port or in its folder."""

    file: str
    source: str
    command: Callable[[int], list[str]]
    serves: bool = True


def python(*arguments: str) -> list[str]:
    """Return a command of this Python."""
    return [sys.executable, *arguments]


def uvicorn(port: int) -> list[str]:
    """Start `uvicorn --reload`."""
    options = ["--reload", "--port", str(port), "--lifespan", "off", "--log-level", "warning"]
    return python("-m", "uvicorn", "app:app", *options)


def flask(port: int) -> list[str]:
    """Start Flask with its reloader."""
    return python("app.py", str(port))


def django(port: int) -> list[str]:
    """Start `manage.py runserver`."""
    return python("app.py", "runserver", "--skip-checks", f"127.0.0.1:{port}")


def watcher(_: int) -> list[str]:
    """Start `ptw`, which runs pytest once and after each change."""
    pytest_program = str(Path(sys.executable).with_name("pytest"))
    options = ["--now", "--delay", "0.1", "--runner", pytest_program]
    return python("-m", "pytest_watcher", ".", *options, "-q", "-p", "no:cacheprovider")


KINDS = {
    "uvicorn": Kind("app.py", UVICORN, uvicorn),
    "flask": Kind("app.py", FLASK, flask),
    "django": Kind("app.py", DJANGO, django),
    "pytest-watcher": Kind("test_app.py", PYTEST, watcher, serves=False),
}


class Running:
    """A development server at work on an application whose answers have its version."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        """Write version 1; nothing is started yet."""
        self._kind = kind
        self._folder = folder
        self._port = processes.free_port()
        self.log = folder / "log"
        self.save(1)

    def save(self, version: int) -> None:
        """Save the file with another version, at once, as editors do."""
        text = f"VERSION = {version}\n{self._kind.source}"
        written = self._folder / "written"
        written.write_text(text)
        written.replace(self._folder / self._kind.file)

    def wait_for(self, version: int) -> None:
        """Wait until a version answers."""

        def answers() -> bool:
            time.sleep(0.1)  # each look is a request
            return self._answer() == f"{version} 7"

        patience = 10 if self._kind.serves else 2  # to save a test again costs at most a run of it
        for _ in range(180 // patience):
            with suppress(AssertionError):
                return wait_until(answers, patience)
            if self._answer():  # it runs, and has missed the change: it had just begun or ended
                self.save(version)
        raise AssertionError(f"no version {version}: {self.log.read_text()[-2000:]}")

    def _answer(self) -> str:
        if not self._kind.serves:
            found = self._folder / "answer"
            return found.read_text() if found.exists() else ""
        with suppress(OSError, HTTPException):  # a server that reloads may end in an answer
            url = f"http://127.0.0.1:{self._port}/"
            with urllib.request.urlopen(url, timeout=10) as answer:
                return str(answer.read().decode())
        return ""

    @contextmanager
    def started(self, variables: dict[str, str]) -> Iterator[None]:
        """Run the server in a group of processes, and end the group."""
        environment = processes.base_environment() | variables
        # Two versions that were saved in one second would share their bytecode.
        environment |= {"PYTHONPATH": str(LAYER), "PYTHONDONTWRITEBYTECODE": "1"}
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # a start takes a third of the time
        with (
            self.log.open("wb") as log,
            subprocess.Popen(
                self._kind.command(self._port),
                cwd=self._folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            ) as process,
        ):
            try:
                yield
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.once
@pytest.mark.timeout(120 + 30 * RELOADS)
@pytest.mark.parametrize("name", KINDS)
def test_reloads_of_a_development_server_leave_no_connection(
    admin: Admin, variables: dict[str, str], tmp_path: Path, name: str
) -> None:
    """After so many reloads the server counts what it counted after the first start."""
    kind = KINDS[name]
    expected = int(kind.serves)  # pytest ends after each run
    server = Running(kind, tmp_path)
    with server.started(variables):
        server.wait_for(1)
        counts = []
        for version in range(2, RELOADS + 2):
            wait_until(lambda: connections(admin) == expected, 20, f"{expected} connection(s)")
            server.save(version)
            server.wait_for(version)
            counts.append(connections(admin))
        wait_until(lambda: connections(admin) == expected, 20, f"{expected}, were {counts}")
    assert not FAILED.search(server.log.read_text()), server.log.read_text()
    print(f"{name}: {expected} connection(s) after the first start, and after {RELOADS} reloads")
