"""Commits of one statement each while the server crashes, and an audit of the rows.

Processes of writers commit directly and through the pooler while the server crashes: it is
restarted immediately, or one backend is killed, after which the server ends all others. One
process in three is the control; it must lose writes, or the crashes prove nothing.
"""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO, Any, Final, Literal

import psycopg

from benchmarks.servers import DATABASE, ROOT, USER, Endpoint, Servers, running
from lambda_pg_cdk.local import processes

Report = Callable[[str], None]
Kind = Literal["server restarted at once", "one backend killed"]
Flush = Literal["default", "delayed"]

KINDS: Final[tuple[Kind, ...]] = ("server restarted at once", "one backend killed")
FLUSHES: Final[dict[Flush, dict[str, str]]] = {
    "default": {},
    "delayed": {"commit_delay": "100000", "commit_siblings": "0"},
}
"""PostgreSQL's settings. With "delayed", each COMMIT waits 0.1 s before its flush, so each crash
interrupts all writers."""
PROCESSES: Final = 3
"""Processes of writers for each path; the last one is the control."""
BACK: Final = 100
"""Commits after which the writers have recovered from a crash."""
THREADS: Final = 8
"""Writers of each process; each has its own `Database`."""
SPAN: Final = 1 << 40
"""How many row numbers each writer has."""
RECOVERY: Final = 30.0
"""Seconds without a commit after which the run fails."""


@dataclass(frozen=True)
class WriterSummary:
    """The outcomes of one writer's rows `first` to `last`; the rows not named are acknowledged."""

    first: int
    last: int
    unknown: list[int]
    refused: list[int]

    @property
    def acknowledged(self) -> int:
        """How many rows must be present, once each."""
        return self.last - self.first + 1 - len(self.unknown) - len(self.refused)


@dataclass
class Count:
    """The audited rows of some writers.

    `lost`: acknowledged, but missing. `duplicated`: present more than once. `hidden`: present, but
    reported as not run.
    """

    acknowledged: int = 0
    unknown: int = 0
    refused: int = 0
    lost: int = 0
    duplicated: int = 0
    hidden: int = 0

    def add(self, summary: WriterSummary, present: Mapping[int, int]) -> None:
        """Compare a writer's summary with how often each of its rows is present."""
        doubtful = {*summary.unknown, *summary.refused}
        self.acknowledged += summary.acknowledged
        self.unknown += len(summary.unknown)
        self.refused += len(summary.refused)
        self.lost += summary.acknowledged - sum(number not in doubtful for number in present)
        self.duplicated += sum(times > 1 for times in present.values())
        self.hidden += sum(number in present for number in summary.refused)


class Process:
    """A process of writers; `commits` is its last printed count."""

    def __init__(self, servers: Servers, endpoint: Endpoint, number: int) -> None:
        """Start it."""
        self.is_control = number == PROCESSES - 1
        self.commits = 0
        self.summaries: list[WriterSummary] = []
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.chaos.writers"),
                *(str(1 + (number * THREADS + thread) * SPAN) for thread in range(THREADS)),
                *(["--control"] if self.is_control else []),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=servers.function_environment(endpoint, [ROOT / "layer" / "python", ROOT]),
            cwd=ROOT,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,))
        self._reader.start()

    def _read(self, output: IO[bytes]) -> None:
        for line in output:
            answer = json.loads(line)
            if isinstance(answer, int):
                self.commits = answer
            else:
                self.summaries = [WriterSummary(**each) for each in answer]

    def end(self) -> None:
        """Close its input; wait until it has printed its summaries and ended."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._reader.join()
        processes.stop(self._process, signal.SIGTERM, RECOVERY)
        if self._process.stdout is not None:
            self._process.stdout.close()

    @property
    def failed(self) -> bool:
        """Whether it ended without its summaries."""
        return not self.summaries


@contextmanager
def writing(servers: Servers, endpoint: Endpoint) -> Iterator[list[Process]]:
    """Write from several processes until the block ends; then each has its summaries."""
    writers = [Process(servers, endpoint, number) for number in range(PROCESSES)]
    try:
        yield writers
    finally:
        for process in writers:
            process.end()
    if any(process.failed for process in writers):
        raise RuntimeError("a process of writers failed; its traceback is above")


def await_commits(writers: list[Process], count: int) -> None:
    """Wait for `count` more commits of the layer's writers.

    Raises TimeoutError after RECOVERY seconds without one.
    """
    goal, last, since = _commits(writers) + count, -1, time.monotonic()
    while (now := _commits(writers)) < goal:
        if now != last:
            last, since = now, time.monotonic()
        if time.monotonic() - since > RECOVERY:
            raise TimeoutError(f"no commit for {RECOVERY:g} s: the writers did not recover")
        time.sleep(0.01)


def _commits(writers: list[Process]) -> int:
    return sum(process.commits for process in writers if not process.is_control)


def crash(servers: Servers, kind: Kind) -> None:
    """Crash the server, which then recovers; raise RuntimeError if there is no backend to kill."""
    if kind == "server restarted at once":
        servers.postgres.restart("immediate")
        return
    with psycopg.connect(servers.postgres.superuser_dsn, autocommit=True) as admin:
        found = admin.execute("SELECT pid FROM pg_stat_activity WHERE usename = %s", [USER])
        backends = [pid for (pid,) in found]
    if not backends:
        raise RuntimeError(f"no backend to kill: {USER} has no connection")
    os.kill(random.choice(backends), signal.SIGKILL)  # noqa: S311 - any will do


def row(
    servers: Servers, endpoint: Endpoint, kind: Kind, *, crashes: int, commits: int, report: Report
) -> dict[str, Any]:
    """Crash the server `crashes` times, each after `commits` more commits, and audit the rows."""
    with psycopg.connect(servers.direct.url, sslrootcert=str(servers.direct.ca_file)) as owner:
        owner.execute("DROP TABLE IF EXISTS commits")
        owner.execute("CREATE TABLE commits (number bigint NOT NULL)")
    with writing(servers, endpoint) as writers:
        await_commits(writers, BACK)
        for _ in range(crashes):
            await_commits(writers, commits)
            crash(servers, kind)
            await_commits(writers, BACK)
    layer, control = Count(), Count()
    for process in writers:
        _audit(servers, process.summaries, control if process.is_control else layer)
    report(
        f"{kind}, {endpoint.path}: {crashes} crashes, {layer.acknowledged} commits, {layer.lost} "
        f"lost, {layer.unknown} of unknown outcome; the control lost {control.lost}"
    )
    counts = {"layer": asdict(layer), "control": asdict(control)}
    return {"path": endpoint.path, "kind": kind, "crashes": crashes, **counts}


def _audit(servers: Servers, summaries: list[WriterSummary], count: Count) -> None:
    with psycopg.connect(servers.postgres.superuser_dsn, dbname=DATABASE) as admin:
        for each in summaries:
            rows = admin.execute(
                "SELECT number, count(*) FROM commits WHERE number BETWEEN %s AND %s GROUP BY 1",
                [each.first, each.last],
            )
            count.add(each, dict(rows.fetchall()))


def crash_under_commits(
    flush: Flush, *, crashes: int, commits: int, report: Report
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return four rows, both kinds of crash on both paths, and the versions of the servers.

    `crashes` is the number in each row, `commits` the number before each crash. The server runs
    with fsync.
    """
    with running(parameters=FLUSHES[flush]) as servers:
        rows = [
            {
                "flush": flush,
                **row(servers, endpoint, kind, crashes=crashes, commits=commits, report=report),
            }
            for endpoint, kind in itertools.product(servers.endpoints, KINDS)
        ]
        return rows, servers.versions


def shortfalls(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Name every broken promise: the layer may lose nothing, the control must lose something."""
    for each in rows:
        for wrong in ("lost", "duplicated", "hidden"):
            if count := each["layer"][wrong]:
                name = f"{each['kind']}, {each['path']}, flush {each['flush']}"
                yield f"{name}: {count} {wrong}"
    if not sum(each["control"]["lost"] for each in rows):
        yield "the control lost nothing: the crashes prove nothing"
