"""The development loop: what is saved runs within seconds, and nothing of the old code stays."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psycopg
import pytest

from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.http.caller import call
from lambda_pg_cdk.migrations.new import write
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(1800)  # deployments take minutes where the machine is busy

SAVES = int(os.environ.get("SAVES", "10"))
"""Each is a build and the start of an environment. A connection that a save leaves open shows after
one; the 50 that docs/local-cloud.md names are run on demand: `make test SAVES=50`."""
PATIENCE = 300.0


class Loop:
    """A `watch` on a copy of the project that the cloud has deployed."""

    def __init__(self, cloud: LocalCloud, project: Path) -> None:
        """Start it."""
        self.cloud, self.project = cloud, project
        self.handler = project / "functions" / "health" / "handler.py"
        self.source = self.handler.read_text()
        self.said: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lambda_pg_cdk.local", "watch"],
            cwd=project,
            env={**os.environ, "LAMBDA_PG_STATE_DIR": str(cloud.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.said += iter(self._process.stdout.readline, "")

    def wait_for(self, text: str, count: int = 1) -> None:
        """Wait until a text has been said so often."""
        wait_until(lambda: "".join(self.said).count(text) >= count, PATIENCE, f"{text!r}")

    def save(self, version: int) -> None:
        """Save the function with an answer that names a version."""
        self.write(self.source.replace('{"status": "up"}', f'{{"status": "up{version}"}}'))

    def write(self, text: str) -> None:
        """Save the function by a rename, as many editors do."""
        partial = self.handler.with_suffix(".py~")
        partial.write_text(text)
        partial.replace(self.handler)

    def answer(self) -> str:
        """Call the function; return the status that it answers."""
        answer = call(self.cloud.url, "GET", "/health")
        assert answer.status == 200, answer.body
        return str(answer.json()["status"])

    def serves(self, version: int) -> bool:
        """Tell whether requests run a save."""
        return self.answer() == f"up{version}"

    def close(self) -> None:
        """End it as Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)
        try:
            assert self._process.wait(60) == 0
        finally:
            self._process.kill()
            self._reader.join()
            assert self._process.stdout is not None
            self._process.stdout.close()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let a child hear Ctrl-C even where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def loop(interruptible: None, cloud: LocalCloud, project: Path) -> Iterator[Loop]:
    """A watch that has begun."""
    cloud.deploy(app=project)
    started = Loop(cloud, project)
    try:
        started.wait_for("watching")
        yield started
    finally:
        started.close()
    assert "no longer watching; the local cloud runs on" in started.said[-1]


@contextmanager
def light_load(loop: Loop) -> Iterator[list[str]]:
    """Call the function all the time; give what was not a 200."""
    failed: list[str] = []
    ending = threading.Event()

    def ask() -> None:
        while not ending.wait(0.05):
            answer = call(loop.cloud.url, "GET", "/health")
            if answer.status != 200:
                failed.append(f"{answer.status} {answer.body}")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield failed
    finally:
        ending.set()
        thread.join()


def connections(cloud: LocalCloud) -> tuple[int, int]:
    """Count client connections at all tasks of the pooler, and their server connections."""
    clients = servers = 0
    for task in cloud.status()["pooler"]["tasks"]:
        with psycopg.connect(task["admin_dsn"], autocommit=True) as console:
            cursor = console.execute("SHOW POOLS")
            names = [column.name for column in cursor.description or ()]
            for row in cursor.fetchall():
                pool = dict(zip(names, row, strict=True))
                if pool["database"] != "pgbouncer":
                    clients += pool["cl_active"] + pool["cl_waiting"]
                    servers += sum(pool[name] for name in names if name.startswith("sv_"))
    return clients, servers


def environments(cloud: LocalCloud) -> int:
    """Count the environments of the function that is saved."""
    return int(cloud.status()["functions"]["health"])


def test_saves_with_broken_code_a_migration_and_a_new_layer(loop: Loop) -> None:
    """Requests run each save; none fails; no connection, environment or code of before stays."""
    cloud = loop.cloud
    for function in cloud.status()["functions"]:  # of other tests
        cloud.end_environments(function)
    cloud.environments("health", 8, spread=True)  # both tasks of the pooler get connections
    for _ in range(16):
        loop.answer()
    cloud.end_environments("health")
    loop.answer()
    wait_until(lambda: connections(cloud)[0] == 1, what="one client connection")
    before = connections(cloud)
    code = cloud.folder / "code"
    folders = len(list(code.iterdir()))
    with light_load(loop) as failed:
        for version in range(SAVES):
            loop.save(version)
            wait_until(partial(loop.serves, version), PATIENCE, f"save {version}")
            if version == SAVES // 2:
                the_middle(loop, version)
        change_the_layer(loop)
    assert failed == []
    wait_until(lambda: environments(cloud) <= 2, what="old environments")  # two requests at once
    wait_until(lambda: connections(cloud)[0] <= environments(cloud), what="the clients of before")
    assert connections(cloud)[1] <= before[1]
    assert len(list(code.iterdir())) <= folders + 10
    seconds = [
        float(each) for each in re.findall(r"health: new code, ([\d.]+) s", "".join(loop.said))
    ]
    assert len(seconds) >= SAVES
    print(
        f"new code: median {sorted(seconds)[len(seconds) // 2]:.1f} s, longest {max(seconds):.1f} s"
    )


def the_middle(loop: Loop, version: int) -> None:
    """Save code that does not compile, code that does not start, and a migration."""
    loop.write(f"{loop.source}\ndef broken(:\n")
    loop.wait_for("SyntaxError")
    assert loop.serves(version)
    loop.write(f"{loop.source}\nraise RuntimeError('at import')\n")
    loop.wait_for("RuntimeError: at import")
    assert loop.serves(version)
    said = "".join(loop.said)
    assert f'File "{loop.handler}", line' in said.partition("does not start")[2]
    loop.save(version)
    write("add watched", loop.project / "migrations")
    loop.wait_for("deployed in")
    with psycopg.connect(loop.cloud.status()["postgres"]["dsn"]) as connection:
        assert connection.execute("SELECT to_regclass('watched')").fetchone() == ("watched",)
    assert loop.serves(version)


def change_the_layer(loop: Loop) -> None:
    """Save a file of the layer: it is built once, and each function with an alias gets it."""
    errors = loop.project / "layer" / "python" / "lambda_pg" / "_errors.py"
    errors.write_text(errors.read_text() + '\nprint("the layer of the watch", flush=True)\n')
    loop.wait_for("layer: new layer in health, notes, sql, users")
    assert loop.answer().startswith("up")
    assert "the layer of the watch" in (loop.cloud.folder / "logs" / "users.log").read_text()
