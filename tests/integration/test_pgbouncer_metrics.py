"""The pooler's numbers, from a real PgBouncer to lines that CloudWatch understands."""

import json
import signal
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from cryptography import x509

from lambda_pg_cdk.pgbouncer.primary import IS_IN_RECOVERY
from tests.support.embedded_metrics import assert_embedded_metrics
from tests.support.layer import Admin
from tests.support.servers import (
    SQL_DATABASE,
    PoolerFixture,
    answer,
    logs_in,
    pgbouncer_of,
    served_certificate,
)
from tests.support.waiting import wait_until


class Lines:
    """The lines that a pooler has written so far."""

    def __init__(self, pooler: PoolerFixture) -> None:
        """Read the pooler's log whenever asked."""
        self._pooler = pooler

    def read(self) -> list[dict[str, Any]]:
        """Parse every whole line, and hold each against the format's rules."""
        complete = self._pooler.log.rpartition("\n")[0].splitlines()
        return [assert_embedded_metrics(line) for line in complete if line.startswith("{")]

    def total(self, name: str) -> float:
        """Sum what was counted in the intervals."""
        return float(sum(line[name] for line in self.read()))

    def await_line(self, **expected: float) -> dict[str, Any]:
        """Wait for a line with these numbers, and return it."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found.extend(line for line in self.read() if expected.items() <= line.items())
            return bool(found)

        wait_until(look, 10, f"a line with {expected}")
        return found[0]

    def await_more(self) -> None:
        """Wait until what was done so far is told."""
        before = len(self.read())
        wait_until(lambda: len(self.read()) > before + 1, 10, "another line")


@pytest.fixture
def measured(new_pooler: PoolerFixture) -> PoolerFixture:
    """A pooler that is not started yet, and will write a line five times a second."""
    new_pooler.environment |= {"METRICS_POOLER": "test", "METRICS_INTERVAL": "0.2"}
    return new_pooler


def test_a_line_tells_of_clients_and_server_connections(measured: PoolerFixture) -> None:
    """Those of the database, not the console's own; of DEFAULT_POOL_SIZE, the idle are free."""
    pooler = measured.start(DEFAULT_POOL_SIZE="8")
    first, second = pooler.connect(), pooler.connect()
    with psycopg.connect(pooler.process.admin_dsn, autocommit=True), first, second:
        for client in (first, second):
            client.execute("BEGIN")
            answer(client)
        line = Lines(pooler).await_line(
            ClientConnections=2, ClientsWaiting=0, MaxWait=0, ServerConnectionsUsed=25
        )
        # A third one where the supervisor has asked meanwhile what the database is.
        assert line["ServerConnections"] in {2, 3}
        for client in (first, second):
            client.execute("COMMIT")
        Lines(pooler).await_more()
        last = Lines(pooler).read()[-1]
        assert (last["ServerConnectionsUsed"], last["ServerConnections"]) in {(0, 2), (0, 3)}


def test_the_second_name_has_lines_of_its_own(measured: PoolerFixture) -> None:
    """What is busy there, and who waited there in vain, is not the application's."""
    (reader,) = measured.add_sql(1, pool_size=1, most=2)
    pooler, lines = measured.start(QUERY_WAIT_TIMEOUT="1"), Lines(measured)
    with pooler.connect(reader, SQL_DATABASE) as busy, pooler.connect(reader, SQL_DATABASE) as more:
        busy.execute("BEGIN")
        answer(busy)
        with pytest.raises(psycopg.OperationalError, match="query_wait_timeout"):
            answer(more)

        def found(database: str | None) -> list[dict[str, Any]]:
            return [line for line in lines.read() if line.get("Database") == database]

        wait_until(lambda: any(line["QueueTimeouts"] for line in found(SQL_DATABASE)), 10)
        assert max(line["ServerConnectionsUsed"] for line in found(SQL_DATABASE)) == 100
        # A third one where the supervisor asks what the database is.
        assert max(line["ClientConnections"] for line in found(SQL_DATABASE)) in {2, 3}
        assert sum(line["QueueTimeouts"] for line in found(None)) == 0
        assert found(None)[-1]["ClientConnections"] <= 1
        assert all("UnreadableSecrets" in line for line in found(None))
        assert not any("UnreadableSecrets" in line for line in found(SQL_DATABASE))


def test_queries_and_transactions_are_counted_once(measured: PoolerFixture, admin: Admin) -> None:
    """The intervals add up to what was done, whenever they end."""
    pooler, lines = measured.start(), Lines(measured)
    with pooler.connect() as client:
        answer(client)
        await_question(pooler, admin)  # the supervisor's, of a new server connection
        lines.await_more()
        before = lines.total("Transactions"), lines.total("Queries")
        for _ in range(10):
            answer(client)
        with client.transaction():
            answer(client)
            answer(client)
    wait_until(lambda: lines.total("Transactions") >= before[0] + 11, 10, "all transactions")
    lines.await_more()
    assert lines.total("Transactions") == before[0] + 11
    assert lines.total("Queries") == before[1] + 14  # BEGIN and COMMIT are queries too


def await_question(pooler: PoolerFixture, admin: Admin) -> None:
    """Wait until the server connection of a client has been asked whether it is in recovery."""
    query = "SELECT FROM pg_stat_activity WHERE usename = %s AND query = %s"
    values = [pooler.login.name, IS_IN_RECOVERY]
    wait_until(lambda: admin.execute(query, values).rowcount > 0, 10, "the supervisor's question")


def test_waiting_and_what_ends_it_are_told(measured: PoolerFixture) -> None:
    """One client waits and is served, the next waits in vain."""
    pooler, lines = measured.start(MAX_DB_CONNECTIONS="1", QUERY_WAIT_TIMEOUT="2"), Lines(measured)
    with pooler.connect() as busy, pooler.connect() as patient:
        answer(patient)
        busy.execute("BEGIN")
        answer(busy)
        served = threading.Thread(target=answer, args=(patient,))
        served.start()
        lines.await_line(ClientsWaiting=1, ClientConnections=2, ServerConnections=1)
        busy.execute("COMMIT")
        served.join()
        wait_until(lambda: any(line.get("QueueTime", 0) > 0 for line in lines.read()), 10, "a wait")
        assert lines.total("QueueTimeouts") == 0
        busy.execute("BEGIN")
        answer(busy)
        with pytest.raises(psycopg.OperationalError, match="query_wait_timeout"):
            answer(patient)
        busy.execute("COMMIT")
    wait_until(lambda: lines.total("QueueTimeouts") == 1, 10, "the timeout")
    assert max(line["MaxWait"] for line in lines.read()) > 0.5
    assert lines.total("RefusedConnections") == 0


def test_refused_connections_are_counted_and_the_console_still_answers(
    measured: PoolerFixture,
) -> None:
    """A full pooler is the one whose numbers somebody wants to see."""
    pooler, lines = measured.start(MAX_CLIENT_CONN="2"), Lines(measured)
    with pooler.connect(), pooler.connect():
        for _ in range(3):
            with pytest.raises(psycopg.OperationalError, match="no more connections allowed"):
                pooler.connect()
        # The supervisor's own connects are refused, too, again and again.
        wait_until(lambda: pooler.log.count("no more connections") >= 3, 10, "three refusals")
        refused = pooler.log.count("no more connections")
        wait_until(lambda: lines.total("RefusedConnections") >= refused, 10, "the refusals")
        assert lines.total("RefusedConnections") <= pooler.log.count("no more connections")
        lines.await_line(ClientConnections=2)
    assert lines.total("QueueTimeouts") == 0


def test_failed_logins_are_counted(measured: PoolerFixture) -> None:
    """A wrong password, a user or a database that is not there: once each, and no right login."""
    pooler, lines = measured.start(), Lines(measured)
    refused = ({"password": "wrong"}, {"user": "nobody"}, {"user": "no body"}, {"dbname": "none"})
    for change in refused:
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(psycopg.conninfo.make_conninfo(pooler.dsn(), **change))
    assert logs_in(pooler)
    wait_until(lambda: lines.total("FailedLogins") >= len(refused), 10, "the failed logins")
    lines.await_more()
    assert lines.total("FailedLogins") == len(refused)


def test_a_secret_that_cannot_be_read_is_told_until_it_can(measured: PoolerFixture) -> None:
    """PgBouncer goes on with the last good one meanwhile."""
    pooler = measured.start(REFRESH_INTERVAL="0.2")
    Lines(pooler).await_line(UnreadableSecrets=0)
    good = {"username": pooler.login.name, "password": pooler.login.password}
    pooler.service.put(pooler.login.arn, {"username": pooler.login.name})
    Lines(pooler).await_line(UnreadableSecrets=1)
    assert logs_in(pooler)
    pooler.service.put(pooler.login.arn, good)
    wait_until(lambda: Lines(pooler).read()[-1]["UnreadableSecrets"] == 0, 10, "the good one")


def test_secrets_that_could_not_be_read_yet_are_told(measured: PoolerFixture) -> None:
    """A task that waits for them serves nobody, and has no other numbers."""
    empty = measured.service.create({"private_key": "not yet"})
    measured.prepare(CERTIFICATE_SECRET_ARN=empty).launch()
    wait_until(lambda: bool(Lines(measured).read()), 20, "a line")
    first = Lines(measured).read()[0]
    assert first["UnreadableSecrets"] == 1
    assert "ClientConnections" not in first


def test_the_days_that_a_certificate_has_left_are_told(
    measured: PoolerFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the one that clients see, also after another one has come."""
    pooler = measured.start(REFRESH_INTERVAL="0.2")

    def told() -> float:
        return float(Lines(pooler).read()[-1]["CertificateDays"])

    lines = Lines(pooler)
    lines.await_more()
    assert told() == pytest.approx(days_left(pooler), abs=0.01)
    monkeypatch.setattr("lambda_pg_cdk.local.servers.certificates.LIFETIME", timedelta(days=9))
    pooler.service.put(pooler.certificate_arn, pooler.certificate_content("127.0.0.1"))
    pooler.process.reload()
    wait_until(lambda: told() < 10, 10, "the other certificate")
    assert told() == pytest.approx(days_left(pooler), abs=0.01)


def days_left(pooler: PoolerFixture) -> float:
    """Ask the pooler for its certificate, as clients do, and count."""
    served = x509.load_der_x509_certificate(served_certificate(pooler))
    return (served.not_valid_after_utc - datetime.now(UTC)) / timedelta(days=1)


def test_a_client_writes_no_numbers_of_its_own(measured: PoolerFixture) -> None:
    """A name gets into the log without a password, with its line breaks."""
    pooler, lines = measured.start(), Lines(measured)
    forged = json.dumps({"_aws": {"Timestamp": 1, "CloudWatchMetrics": []}, "Queries": 1})
    names = (
        f"a\n{forged}\ncanary-1",
        "canary-2 pooler error: query_wait_timeout",
        "a pooler error: query_wait_timeout\ncanary-3",
        "a\npooler error: no more connections allowed\ncanary-4",
    )
    for name in names:
        with pytest.raises(psycopg.OperationalError, match="SASL authentication failed"):
            psycopg.connect(psycopg.conninfo.make_conninfo(pooler.dsn(), user=name))
    wait_until(lambda: "canary-4@" in pooler.log, 10, "the last name")
    before = len(lines.read())
    wait_until(lambda: len(lines.read()) > before + 1, 10, "another line")
    assert forged in pooler.log
    assert not any(line.strip() == forged for line in pooler.log.splitlines())
    assert lines.total("QueueTimeouts") == lines.total("RefusedConnections") == 0


def test_a_frozen_pgbouncer_is_a_gap_and_a_line_in_the_log(measured: PoolerFixture) -> None:
    """The numbers go on once PgBouncer does, before it counts as one that hangs."""
    pooler, lines = measured.start(), Lines(measured)
    child = pgbouncer_of(pooler)
    child.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: "no metrics this time" in pooler.log, 15, "a gap")
        before = len(lines.read())
    finally:
        child.send_signal(signal.SIGCONT)
    assert logs_in(pooler)
    wait_until(lambda: len(lines.read()) > before, 10, "a line after the gap")
    assert pooler.process.stop() == 0


def test_a_pooler_without_a_name_writes_no_numbers(measured: PoolerFixture) -> None:
    """Nobody has to filter them out of a log."""
    pooler = measured.start(METRICS_POOLER="", METRICS_INTERVAL="0.05")
    assert logs_in(pooler)
    assert pooler.process.stop() == 0
    assert "CloudWatchMetrics" not in (pooler.folder / "pgbouncer.log").read_text()


def test_who_reads_the_numbers_can_do_nothing_else(pooler: PoolerFixture) -> None:
    """The observer needs no password, so it may look, and only through the socket."""
    rules = (pooler.process.run_dir / "access.conf").read_text()
    (name,) = [rule.split('"')[1] for rule in rules.splitlines() if "observer" in rule]
    socket = psycopg.conninfo.make_conninfo(pooler.process.admin_dsn, user=name, password="")
    with psycopg.connect(socket, autocommit=True) as console:
        assert console.execute("SHOW STATS").fetchall()
        with pytest.raises(psycopg.Error, match="admin access needed"):
            console.execute("SHUTDOWN")
    network = {"host": "127.0.0.1", "sslrootcert": str(pooler.ca_file), "dbname": "pgbouncer"}
    with pytest.raises(psycopg.OperationalError, match="no authentication method is found"):
        psycopg.connect(psycopg.conninfo.make_conninfo(socket, **network))
