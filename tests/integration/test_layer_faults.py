"""The layer on a bad network: what was acknowledged is there, once, and nobody waits for ever.

The way is layer → fault proxy → recorder → server. The recorder reads the protocol behind TLS and
so knows the moment, the fault proxy is where the network breaks.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from lambda_pg import (
    CommitOutcomeUnknownError,
    Database,
    DatabaseUnavailableError,
    DeadlineExceededError,
    Settings,
    _outcome,
)
from psycopg.rows import TupleRow

from lambda_pg_cdk.local.faults.proxy import Ending, Fault, FaultProxy, can_blackhole
from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.context import Context
from tests.support.layer import APPLICATION, PASSWORD, Admin, kill_backends
from tests.support.recorder import Recorder, socket_of
from tests.support.waiting import wait_until

LAYER = Path(__file__).parents[2] / "layer" / "python"

INSERT = "INSERT INTO counter VALUES (%s)"
INSERT_ONCE = "INSERT INTO counter SELECT %s WHERE NOT EXISTS (SELECT FROM counter WHERE n = %s)"


@dataclass
class Line:
    """The layer, the way to the server, and a look at the server past it."""

    db: Database[TupleRow]
    settings: Settings
    network: FaultProxy
    recorder: Recorder
    admin: Admin
    opened: ExitStack

    def open(self, **changes: Any) -> Database[TupleRow]:
        """Make another database."""
        database = Database(replace(self.settings, **changes))
        self.opened.callback(database.close)
        return database

    def rows(self) -> Counter[int]:
        """Count the rows of the ledger by their number, once only idle connections are left."""
        wait_until(self._is_settled)
        return Counter(n for (n,) in self.admin.execute("SELECT n FROM counter"))

    def _is_settled(self) -> bool:
        states = self.admin.execute(
            "SELECT state FROM pg_stat_activity WHERE application_name = %s", [APPLICATION]
        ).fetchall()
        return states in ([], [("idle",)])


@pytest.fixture
def line(postgres: Postgres, settings: Settings, admin: Admin, tmp_path: Path) -> Iterator[Line]:
    """A warm connection through the fault proxy and the recorder."""
    with (
        Recorder(socket_of(postgres), tmp_path) as recorder,
        FaultProxy("127.0.0.1", recorder.port) as network,
        ExitStack() as opened,
    ):
        there = replace(settings, port=network.port, sslrootcert=recorder.ca_file)
        database = Database(there)
        opened.callback(database.close)
        database.execute("SELECT 1")
        yield Line(database, there, network, recorder, admin, opened)


# Every verb, at every moment, under every fault


def execute(db: Database[TupleRow], n: int) -> None:
    """Write in autocommit."""
    db.execute(INSERT, [n])


def execute_with_claims(db: Database[TupleRow], n: int) -> None:
    """Write in a transaction of one round trip."""
    db.execute(INSERT, [n], claims={"sub": "a"})


def execute_idempotent(db: Database[TupleRow], n: int) -> None:
    """Write what is as good twice."""
    db.execute(INSERT_ONCE, [n, n], idempotent=True)


def transaction(db: Database[TupleRow], n: int) -> None:
    """Write in a transaction that nobody reruns."""
    with db.transaction() as connection:
        connection.execute("SELECT 1")
        connection.execute(INSERT, [n])


def run_transaction(db: Database[TupleRow], n: int) -> None:
    """Write in a unit of work."""
    db.run_transaction(lambda connection: connection.execute(INSERT, [n]))


VERBS = [execute, execute_with_claims, execute_idempotent, transaction, run_transaction]

MOMENTS: dict[str, tuple[str, bool] | None] = {
    "idle": None,
    "statement lost": ("INSERT", False),
    "statement sent": ("INSERT", True),
    "commit lost": ("COMMIT", False),
    "commit sent": ("COMMIT", True),
}

FAULTS: dict[str, Callable[[FaultProxy], Fault | None]] = {
    "reset": lambda network: network.reset(),
    "closed": lambda network: network.half_close("to_client"),
    "half-closed": lambda network: network.half_close("to_server"),
    "answer cut": lambda network: network.cut_after(0, connections="open"),
    "stalled": lambda network: network.stall(connections="open"),
    "answer stalled": lambda network: network.cut_after(0, then="stall", connections="open"),
    "blackhole": lambda network: network.blackhole(connections="open"),
}
STALLS = {"stalled", "answer stalled", "blackhole"}

needs_filters = pytest.mark.skipif(
    not can_blackhole(), reason="this kernel lets only root drop a socket's packets, or nobody"
)
BLACKHOLE = pytest.param("blackhole", marks=needs_filters)
SILENCES = ["stall", BLACKHOLE]

ROWS = {"acknowledged": {1}, "unknown": {0, 1}, "refused": {0}, "refused, idempotent": {0, 1}}
"""How often a write may be there after each outcome."""


def outcome(verb: Callable[[Database[TupleRow], int], None], db: Database[TupleRow], n: int) -> str:
    """Write a row; say what the caller knows about it then."""
    try:
        verb(db, n)
    except CommitOutcomeUnknownError:
        return "unknown"
    except DatabaseUnavailableError as error:
        if verb is execute_idempotent:
            return "refused, idempotent"  # an earlier attempt may have run
        may_have_run = isinstance(error, DeadlineExceededError) and error.may_have_run
        return "unknown" if may_have_run else "refused"
    return "acknowledged"


def expected(verb: Callable[..., None], moment: str, fault: str) -> str:
    """Say what a fault must come to that ends the connection at once."""
    if moment == "idle" and fault == "answer cut":
        moment = "statement sent"
    if moment == "idle" or verb in {run_transaction, execute_idempotent}:
        return "acknowledged"
    if verb is transaction and moment.startswith("statement"):
        return "refused"
    return "unknown"


CASES = [
    pytest.param(
        verb,
        moment,
        fault,
        id=f"{verb.__name__}-{moment}-{fault}",
        marks=needs_filters if fault == "blackhole" else (),
    )
    for verb in VERBS
    for moment in MOMENTS
    for fault in FAULTS
    if not (moment.startswith("commit") and verb in {execute, execute_idempotent})
    if not (moment == "commit lost" and fault == "answer cut")  # there is no answer
    if not (fault == "blackhole" and moment not in {"idle", "commit sent"})  # as stalled
]


@pytest.mark.parametrize(("verb", "moment", "fault"), CASES)
def test_a_write_is_there_as_often_as_its_caller_was_told(
    line: Line, verb: Callable[[Database[TupleRow], int], None], moment: str, fault: str
) -> None:
    """Acknowledged once, refused never; unknown is reported as such; the next write goes on."""
    reached, begun = [], ExitStack()

    def begin() -> None:
        reached.append(moment)  # first: a reset is seen before this returns
        if (lasting := FAULTS[fault](line.network)) is not None:
            begun.callback(lasting.end)

    with ExitStack() as trigger:
        if (at := MOMENTS[moment]) is None:
            begin()
        else:
            trigger.enter_context(line.recorder.at(at[0], begin, deliver=at[1]))
        with line.db.deadline(0.4 if fault in STALLS else 10):
            what = outcome(verb, line.db, 1)
    assert reached
    if fault in {"reset", "closed", "answer cut"}:
        assert what == expected(verb, moment, fault)
    assert outcome(verb, line.db, 2) == "acknowledged"
    begun.close()
    rows = line.rows()
    assert rows[1] in ROWS[what], what
    assert rows[2] == 1


# A lost answer to COMMIT


CUTS = [(mode, count) for mode in ("verify-full", "disable") for count in (0, 1, 5, 12, 17)]
"""In plain text the answer is 18 bytes, CommandComplete and ReadyForQuery; in TLS it has more."""


@pytest.mark.parametrize("then", ["reset", "close"])
@pytest.mark.parametrize(("sslmode", "count"), CUTS)
def test_a_unit_of_work_learns_that_it_was_committed(
    line: Line, sslmode: str, count: int, then: Ending
) -> None:
    """Wherever the answer to COMMIT is cut, its result is returned and nothing runs twice."""
    db, runs = line.open(sslmode=sslmode), []

    def work(connection: psycopg.Connection[TupleRow]) -> str:
        runs.append(1)
        connection.execute(INSERT, [1])
        return "the result"

    with line.recorder.at(
        "COMMIT", lambda: line.network.cut_after(count, then=then, connections="open")
    ):
        assert db.run_transaction(work) == "the result"
    assert len(runs) == 1
    assert any("pg_xact_status" in query for query in line.recorder.queries)
    line.db.close()
    assert line.rows() == {1: 1}


def test_a_unit_of_work_whose_commit_never_arrived_is_run_again(line: Line) -> None:
    """The server says that it was aborted: the second run's result counts."""
    runs = []

    def work(connection: psycopg.Connection[TupleRow]) -> int:
        runs.append(1)
        connection.execute(INSERT, [len(runs)])
        return len(runs)

    with line.recorder.at("COMMIT", line.network.reset, deliver=False):
        assert line.db.run_transaction(work) == 2
    assert line.rows() == {2: 1}


@pytest.mark.parametrize("deliver", [True, False])
def test_a_unit_of_work_that_only_read_is_run_again(line: Line, deliver: bool) -> None:
    """It has no id to ask with and needs none: nothing can have been written."""
    runs = []

    def work(connection: psycopg.Connection[TupleRow]) -> int:
        runs.append(1)
        connection.execute("SELECT 1")
        return len(runs)

    with line.recorder.at("COMMIT", line.network.reset, deliver=deliver):
        assert line.db.run_transaction(work) == 2


def test_a_write_after_a_read_is_resolved_too(line: Line) -> None:
    """The id is learnt before COMMIT where the first statement did not bring it."""
    runs = []

    def work(connection: psycopg.Connection[TupleRow]) -> None:
        runs.append(1)
        connection.execute("SELECT 1")
        connection.execute(INSERT, [1])

    with line.recorder.at("COMMIT", line.network.reset):
        line.db.run_transaction(work)
    assert len(runs) == 1
    assert line.rows() == {1: 1}


def test_a_commit_still_in_progress_is_waited_for(line: Line) -> None:
    """A backend that hangs at COMMIT may yet commit: the layer asks until it is known."""
    runs: list[int] = []

    def work(connection: psycopg.Connection[TupleRow]) -> None:
        runs.append(connection.info.backend_pid)
        connection.execute(INSERT, [1])

    def hang_and_cut() -> None:
        os.kill(runs[0], signal.SIGSTOP)
        line.network.reset()

    with ThreadPoolExecutor(1) as thread, line.recorder.at("COMMIT", hang_and_cut):
        running = thread.submit(line.db.run_transaction, work)
        try:
            wait_until(lambda: line.recorder.queries.count(STATUS) >= 2)
            assert not running.done()
        finally:
            os.kill(runs[0], signal.SIGCONT)
        running.result()
    assert len(runs) == 1
    assert line.rows() == {1: 1}


def test_a_question_about_a_commit_that_is_refused_is_not_asked_again(line: Line) -> None:
    """Nobody may ask: the outcome stays unknown, and the caller learns that at once."""
    line.admin.execute("REVOKE EXECUTE ON FUNCTION pg_xact_status FROM PUBLIC")
    try:
        with (
            line.recorder.at("COMMIT", line.network.reset),
            pytest.raises(CommitOutcomeUnknownError) as caught,
        ):
            line.db.run_transaction(lambda connection: connection.execute(INSERT, [1]))
    finally:
        line.admin.execute("GRANT EXECUTE ON FUNCTION pg_xact_status TO PUBLIC")
    assert isinstance(caught.value.__cause__, psycopg.errors.InsufficientPrivilege)
    assert line.recorder.queries.count(STATUS) == 1


def test_a_question_about_a_commit_that_is_lost_too_is_asked_again(line: Line) -> None:
    """One more reset on the way to the answer does not make the outcome unknown."""
    runs = []

    def work(connection: psycopg.Connection[TupleRow]) -> None:
        runs.append(1)
        connection.execute(INSERT, [1])

    with (
        line.recorder.at("COMMIT", line.network.reset),
        line.recorder.at("pg_xact_status", line.network.reset),
    ):
        line.db.run_transaction(work)
    assert len(runs) == 1
    assert line.recorder.queries.count(STATUS) == 2
    assert line.rows() == {1: 1}


STATUS = _outcome.STATUS.replace("%s", "$1")


def write_first(db: Database[TupleRow], n: int) -> None:
    """Write in a transaction whose first statement it is."""
    with db.transaction() as connection:
        connection.execute(INSERT, [n])


@pytest.mark.parametrize("verb", [run_transaction, write_first])
@pytest.mark.parametrize(("deliver", "status"), [(True, "committed"), (False, "aborted")])
def test_an_outcome_that_stays_unknown_can_be_found_out_later(
    line: Line, verb: Callable[[Database[TupleRow], int], None], deliver: bool, status: str
) -> None:
    """The error of a write that came first in its transaction carries the id to ask with."""
    refused = ExitStack()

    def vanish() -> None:
        refused.callback(line.network.refuse().end)
        line.network.reset()

    db = line.open(checkout_timeout=0.5)
    with line.recorder.at("COMMIT", vanish, deliver=deliver), refused:
        started = time.monotonic()
        with pytest.raises(CommitOutcomeUnknownError) as caught:
            verb(db, 1)
        assert time.monotonic() - started < 1.5
    assert line.rows()[1] == (status == "committed")
    xid = caught.value.xid
    assert line.admin.execute("SELECT pg_xact_status(%s::xid8)", [xid]).fetchone() == (status,)


# Answers and logins that are cut anywhere


@pytest.mark.parametrize("sslmode", ["verify-full", "disable"])
@pytest.mark.parametrize("count", [1, 4, 60, 1000, 5001])
def test_rows_that_are_cut_are_read_again_whole(line: Line, sslmode: str, count: int) -> None:
    """Half a result is none: an idempotent read returns every row once."""
    db = line.open(sslmode=sslmode)
    db.execute("SELECT 1")
    with line.network.cut_after(count, connections="open"):
        rows = db.execute("SELECT generate_series(1, 1000)", idempotent=True).fetchall()
    assert rows == [(n,) for n in range(1, 1001)]


def test_a_reset_behind_half_an_answer_leaves_the_outcome_unknown(line: Line) -> None:
    """However it is noticed: now and then poll() tells of a RST before libpq has read it."""
    for count in range(100):
        line.db.execute("SELECT 1")
        with line.network.cut_after(count % 50, connections="open"):
            with pytest.raises(psycopg.OperationalError) as caught:
                line.db.execute("SELECT 2")
            assert isinstance(caught.value, CommitOutcomeUnknownError), caught.value


@pytest.mark.parametrize("count", [0, 1, 3, 700, 1500, 2200])
@pytest.mark.parametrize("then", ["reset", "close"])
def test_a_login_that_is_cut_is_tried_again(line: Line, count: int, then: Ending) -> None:
    """In the request for TLS, in the handshake, in the login: nothing ran, and time is left."""
    line.db.close()
    cut = line.network.cut_after(count, then=then, connections="new")
    with cut, ThreadPoolExecutor(1) as thread:
        running = thread.submit(execute, line.db, 1)
        wait_until(lambda: line.db.stats()["connections_errors"] >= 1)
        cut.end()
        running.result()
    assert line.rows() == {1: 1}


def test_a_refusal_shorter_than_the_checkout_timeout_is_survived(line: Line) -> None:
    """A listener that comes back within it costs time only."""
    line.db.close()
    with line.network.refuse() as refused, ThreadPoolExecutor(1) as thread:
        running = thread.submit(execute, line.db, 1)
        wait_until(lambda: line.db.stats()["connections_errors"] >= 2)
        refused.end()
        running.result()
    assert line.rows() == {1: 1}


def test_latency_costs_round_trips_and_nothing_else(line: Line) -> None:
    """With 0.25 s each way a write with claims takes one round trip, a transaction one more."""
    with line.network.latency(0.25):
        started = time.monotonic()
        execute_with_claims(line.db, 1)
        assert 0.5 <= time.monotonic() - started < 1
        started = time.monotonic()
        write_first(line.db, 2)
        assert 1 <= time.monotonic() - started < 1.5
    assert line.rows() == {1: 1, 2: 1}


# Peers that say nothing


def read(db: Database[TupleRow]) -> None:
    """Run a statement."""
    db.execute("SELECT 1", idempotent=True)


def read_later(db: Database[TupleRow]) -> None:
    """Run a statement in a transaction, after the stall has begun."""
    db.run_transaction(lambda connection: connection.execute("SELECT 1"))


def send_much(db: Database[TupleRow]) -> None:
    """Send more than the buffers on the way hold."""
    db.execute("SELECT length(%s)", ["x" * 16_000_000])


def connect(db: Database[TupleRow]) -> None:
    """Need a new connection."""
    db.close()
    db.execute("SELECT 1")


@pytest.mark.parametrize("use", [read, read_later, send_much, connect])
@pytest.mark.parametrize("fault", SILENCES)
def test_an_invocation_ends_in_time_whoever_is_silent(
    line: Line, fault: str, use: Callable[[Database[TupleRow]], None]
) -> None:
    """1.5 s before its end: DeadlineExceededError within them, and the next one is served."""

    @line.db.bind_lambda_context
    def handler(event: object, context: Context) -> None:
        use(line.db)

    with getattr(line.network, fault)():
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            handler(None, Context(1.5))
        assert 0.9 < time.monotonic() - started < 1.5
    handler(None, Context(15))  # served: an error would end the test


@pytest.mark.parametrize("fault", SILENCES)
def test_a_silent_connection_is_replaced_where_new_ones_work(line: Line, fault: str) -> None:
    """One that was idle for long is asked, for at most a second, and replaced."""
    db = line.open(idle_check_after=0.01)
    db.execute("SELECT 1")
    with getattr(line.network, fault)(connections="open"):
        time.sleep(0.02)  # longer than idle_check_after
        started = time.monotonic()
        execute(db, 1)
        assert time.monotonic() - started < 1.5


@needs_filters
def test_lost_packets_end_a_wait_without_a_deadline(line: Line) -> None:
    """TCP's user timeout of 3 s ends what would else take a quarter of an hour."""
    with line.network.blackhole(connections="open"):
        started = time.monotonic()
        assert outcome(execute, line.db, 1) == "unknown"
        assert 2 < time.monotonic() - started < 6
    assert outcome(execute, line.db, 2) == "acknowledged"


# A frozen environment


SCRIPT = """
import sys
from lambda_pg import Database

db = Database.from_env()
db.execute("SELECT 1")
print("ready", flush=True)
for line in sys.stdin:
    query, _, n = line.rpartition(" ")
    try:
        db.execute(query, [int(n)])
        print("acknowledged", flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""


class Environment:
    """A process that writes what it is told, and can be frozen."""

    def __init__(self, line: Line) -> None:
        """Start it, with a warm connection."""
        address = f"postgresql://{line.settings.user}:{PASSWORD}@127.0.0.1:{line.network.port}"
        self._process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={
                "PYTHONPATH": str(LAYER),
                "DATABASE_URL": f"{address}/{line.settings.dbname}",
                "PGSSLROOTCERT": str(line.settings.sslrootcert),
                "PGAPPNAME": APPLICATION,
                "LAMBDA_PG_IDLE_CHECK_AFTER": "0.1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        line.opened.callback(self._end)
        assert self.answer() == "ready"

    def begin(self, query: str, n: int) -> None:
        """Have it run a statement with one parameter."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{query} {n}\n")
        self._process.stdin.flush()

    def write(self, n: int) -> str:
        """Have it write a row; return what it was told."""
        self.begin(INSERT, n)
        return self.answer()

    def freeze(self) -> None:
        """Freeze it, and wait until it stands still."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def answer(self) -> str:
        """Wait for what it was told."""
        assert self._process.stdout is not None
        told: str = self._process.stdout.readline().strip()
        return told

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()


FREEZES: dict[str, Callable[[Line], Fault | int | None]] = {
    "untouched": lambda _: None,
    "killed": lambda line: kill_backends(line.admin),
    "reset": lambda line: line.network.reset(),
    "closed": lambda line: line.network.half_close("to_client"),
    "stalled": lambda line: line.network.stall(connections="open"),
    "blackhole": lambda line: line.network.blackhole(connections="open"),
}


@pytest.mark.parametrize("fault", [*(name for name in FREEZES if name != "blackhole"), BLACKHOLE])
def test_a_thawed_environment_serves_its_next_request(line: Line, fault: str) -> None:
    """Whatever has become of its idle connection meanwhile, the caller does not see it."""
    line.db.close()
    environment = Environment(line)
    assert environment.write(1) == "acknowledged"
    environment.freeze()
    lasting = FREEZES[fault](line)
    time.sleep(0.15)  # longer than LAMBDA_PG_IDLE_CHECK_AFTER
    environment.thaw()
    started = time.monotonic()
    assert environment.write(2) == "acknowledged"
    assert time.monotonic() - started < 2
    if isinstance(lasting, Fault):
        lasting.end()
    assert line.rows() == {1: 1, 2: 1}


@pytest.mark.parametrize(
    ("fault", "told"),
    [("untouched", "acknowledged"), ("reset", "CommitOutcomeUnknownError")],
)
def test_an_environment_frozen_in_a_statement_is_told_the_truth(
    line: Line, fault: str, told: str
) -> None:
    """The answer waits in its socket, or the connection was lost and the outcome with it."""
    line.db.close()
    environment = Environment(line)
    sent = threading.Event()
    with line.recorder.at("pg_sleep", sent.set):
        environment.begin("INSERT INTO counter SELECT %s FROM pg_sleep(0.3)", 1)
        assert sent.wait(10)
        environment.freeze()
        FREEZES[fault](line)
        wait_until(lambda: line.rows()[1] == 1)
    environment.thaw()
    assert environment.answer() == told
    assert environment.write(2) == "acknowledged"
    assert line.rows() == {1: 1, 2: 1}


# Everything at once


@dataclass
class Ledger:
    """What the writers were told."""

    told: dict[int, str]
    numbers: Iterator[int]
    stop: threading.Event

    def write(self, db: Database[TupleRow]) -> None:
        """Write rows one after the other, with one verb after the other."""
        for number in self.numbers:
            if self.stop.is_set():
                return
            verb = VERBS[number % len(VERBS)]
            with db.deadline(1.0):
                self.told[number] = outcome(verb, db, number)
            # A caller that is asked to come back later does. Without a rest, all writers together
            # take both cores of a machine, and no fault meets more of them.
            self.stop.wait(0.05 if self.told[number].startswith("refused") else 0.005)


def test_the_ledger_is_right_after_any_mix_of_faults(line: Line) -> None:
    """No acknowledged write is lost, none is there twice, and no refused one is there."""
    generator = random.Random(3)  # noqa: S311 - the same faults each time
    ledger = Ledger({}, iter(range(1, 1_000_000)), threading.Event())
    databases = [line.open() for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        writing = [threads.submit(ledger.write, db) for db in databases]
        for number in range(400):
            disturb(line.network, generator)
            if number >= 40 and Counter(ledger.told.values())["acknowledged"] > 100:
                break
        ledger.stop.set()
    for thread in writing:
        thread.result()
    for db in [*databases, line.db]:
        wait_until(lambda: outcome(execute, db, 0) == "acknowledged", 2.0)  # noqa: B023 - called at once
        db.close()
    rows = line.rows()
    wrong = {n: told for n, told in ledger.told.items() if rows[n] not in ROWS[told]}
    assert wrong == {}
    counts = Counter(ledger.told.values())
    assert counts["acknowledged"] > 100, counts  # however busy the machine is
    assert len(counts) > 1, "no fault has met a write"


def disturb(network: FaultProxy, generator: random.Random) -> None:
    """Do something bad to the network for a moment, then leave it alone for one."""
    match generator.randrange(5):
        case 0:
            network.reset()
        case 1:
            network.half_close(generator.choice(("to_client", "to_server")))
        case 2:
            with network.stall(generator.choice((None, "to_client"))):
                time.sleep(0.05)
        case 3:
            with network.refuse():
                network.reset()
                time.sleep(0.05)
        case 4:
            with network.cut_after(generator.randrange(400), then="reset"):
                time.sleep(0.05)
    time.sleep(generator.uniform(0.02, 0.1))
