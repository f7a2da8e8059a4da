"""The supervisor with a real PgBouncer and a real PostgreSQL behind it."""

import concurrent.futures
import contextlib
import os
import re
import signal
import socket
import tempfile
import time
from collections import Counter
from configparser import ConfigParser
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from moto.secretsmanager.models import SecretsManagerBackend

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.faults.proxy import FaultProxy, can_blackhole
from lambda_pg_cdk.local.servers.certificates import Authority
from lambda_pg_cdk.local.servers.passwords import machine_made_password
from lambda_pg_cdk.local.servers.pgbouncer import PoolerError
from tests.support.postgres import CopiedPostgres
from tests.support.servers import (
    DATABASE,
    PoolerFixture,
    SecretsService,
    answer,
    create_login,
    logs_in,
    pgbouncer_of,
    served_certificate,
)
from tests.support.waiting import wait_until


def with_program(pooler: PoolerFixture, script: str) -> PoolerFixture:
    """Put a shell's script in PgBouncer's place."""
    pooler.binary = replace(pooler.binary, command=("sh", "-c", script))
    return pooler


# Logins and TLS


def test_a_client_logs_in_with_both_hops_verified(kept_pooler: PoolerFixture) -> None:
    """A verify-full client is served, and the server connection behind it is encrypted too."""
    with kept_pooler.connect() as connection:
        row = connection.execute(
            "SELECT current_user, ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        ).fetchone()
    assert row == (kept_pooler.login.name, True)


def test_a_client_that_trusts_another_authority_refuses(
    kept_pooler: PoolerFixture, tmp_path: Path
) -> None:
    """A certificate from an unknown CA ends the connection before the password is sent."""
    other = tmp_path / "other.pem"
    other.write_text(Authority.create("other").pem)
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        kept_pooler.connect(sslrootcert=str(other))


def test_a_client_that_expects_another_name_refuses(kept_pooler: PoolerFixture) -> None:
    """A certificate for 127.0.0.1 is not good for localhost."""
    with pytest.raises(psycopg.OperationalError, match='does not match host name "localhost"'):
        kept_pooler.connect(host="localhost", hostaddr="127.0.0.1")


def test_a_client_without_tls_is_refused(kept_pooler: PoolerFixture) -> None:
    """TLS is required, not offered."""
    with pytest.raises(psycopg.OperationalError, match="SSL required"):
        kept_pooler.connect(sslmode="disable")


def test_a_server_with_a_certificate_from_elsewhere_is_refused(
    new_pooler: PoolerFixture, tmp_path: Path
) -> None:
    """The pooler does not send a password to a server whose certificate it cannot verify."""
    new_pooler.start(SERVER_TLS_CA_FILE=str(new_pooler.ca_file))
    with pytest.raises(psycopg.OperationalError), new_pooler.connect() as connection:
        answer(connection)
    assert "certificate verify failed" in new_pooler.log


def test_a_server_with_another_name_is_refused(
    new_pooler: PoolerFixture, short_folder: Path
) -> None:
    """A certificate of the right CA for another name is not good enough for the server either."""
    impostor = CopiedPostgres(
        new_pooler.postgres.binaries,
        short_folder / "impostor",
        port=processes.free_port(),
        durable=False,
        names=["elsewhere.test"],
    )
    impostor.start()
    try:
        new_pooler.start(DATABASE_PORT=str(impostor.port), SERVER_TLS_CA_FILE=str(impostor.ca_file))
        with pytest.raises(psycopg.OperationalError), new_pooler.connect() as connection:
            answer(connection)
    finally:
        impostor.stop()
    assert "name `127.0.0.1' not present in server certificate" in new_pooler.log


def test_a_wrong_password_is_refused(kept_pooler: PoolerFixture) -> None:
    """SCRAM decides, for every client that comes by TCP."""
    with pytest.raises(psycopg.OperationalError, match="SASL authentication failed"):
        kept_pooler.connect(password="wrong")


def test_a_stranger_cannot_hold_up_everybody(kept_pooler: PoolerFixture) -> None:
    """A startup option without a name is refused; others are served meanwhile."""
    with pytest.raises(psycopg.OperationalError):
        kept_pooler.connect(options="-c=", password="unknown")
    assert logs_in(kept_pooler)


def test_a_password_with_quotes_and_other_characters_works(
    new_pooler: PoolerFixture, secrets_service: SecretsService
) -> None:
    """Whatever a password generator puts into a password survives PgBouncer's file format."""
    new_pooler.login = create_login(new_pooler.postgres, secrets_service, "a\"b'c\\d %;#=é€ e")
    new_pooler.start(USER_SECRET_ARNS=new_pooler.login.arn)
    assert logs_in(new_pooler)


def rounds_of(pooler: PoolerFixture) -> int:
    """Log in and return how often SCRAM hashes the password, as the pooler asks for it."""
    with tempfile.TemporaryFile("w+") as trace:
        login = psycopg.conninfo.make_conninfo(pooler.dsn(), sslrootcert=str(pooler.ca_file))
        connection = psycopg.pq.PGconn.connect_start(login.encode())
        connection.trace(trace.fileno())
        while (status := connection.connect_poll()) != psycopg.pq.PollingStatus.OK:
            assert status != psycopg.pq.PollingStatus.FAILED, connection.get_error_message()
            time.sleep(0.001)
        connection.finish()
        trace.seek(0)
        found = re.search(r",i=(\d+)", trace.read())
    assert found is not None
    return int(found[1])


def test_a_password_that_a_machine_made_needs_no_rounds(new_pooler: PoolerFixture) -> None:
    """One hash for those that our stacks make; RFC 7677's 4,096 for one that somebody chose."""
    pooler = new_pooler.start(REFRESH_INTERVAL="0.3")
    assert rounds_of(pooler) == 1
    pooler.rotate_password("Correct-horse-battery-staple-was-chosen-in-2026")
    wait_until(lambda: logs_in(pooler) and rounds_of(pooler) == 4096, 5, "4,096 rounds")
    pooler.rotate_password(machine_made_password())
    wait_until(lambda: logs_in(pooler) and rounds_of(pooler) == 1, 5, "one round")


def test_the_console_answers_only_through_the_socket(kept_pooler: PoolerFixture) -> None:
    """Statistics are for the machine's own; over the network the console does not exist."""
    with psycopg.connect(kept_pooler.process.admin_dsn, autocommit=True) as console:
        assert console.execute("SHOW POOLS").fetchall()
    network = psycopg.conninfo.make_conninfo(
        kept_pooler.process.admin_dsn, host="127.0.0.1", sslrootcert=str(kept_pooler.ca_file)
    )
    with pytest.raises(psycopg.OperationalError, match="no authentication method is found"):
        psycopg.connect(network)


def test_no_file_is_readable_for_others(kept_pooler: PoolerFixture) -> None:
    """Passwords and keys are for their owner only."""
    folder = kept_pooler.process.run_dir
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    regular = {name: mode for name, mode in modes.items() if not name.startswith(".s.")}
    assert set(regular.values()) == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_thousand_clients_are_accepted(kept_pooler: PoolerFixture) -> None:
    """A thousand clients are connected at once and each is served, with ten server connections."""
    processes.raise_open_files_limit()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(kept_pooler.connect()) for _ in range(1000)]
        assert sum(answer(client) for client in clients) == 1000
        with psycopg.connect(kept_pooler.postgres.superuser_dsn) as observer:
            row = observer.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE usename = %s",
                [kept_pooler.login.name],
            ).fetchone()
    assert row is not None
    assert 1 <= row[0] <= 10


# Secrets that change


def test_a_changed_password_reaches_new_and_old_clients(new_pooler: PoolerFixture) -> None:
    """After a rotation a new login works within two intervals, and an open client goes on."""
    pooler = new_pooler.start(REFRESH_INTERVAL="0.3")
    with pooler.connect() as old:
        assert answer(old) == 1
        pooler.rotate_password("the-next-password")
        wait_until(lambda: logs_in(pooler), 5, "a login with the new password")
        assert answer(old) == 1


def test_a_refused_login_makes_the_supervisor_look_at_once(pooler: PoolerFixture) -> None:
    """With a minute between looks, the new password still works within seconds."""
    assert logs_in(pooler)
    pooler.rotate_password("the-next-password")
    wait_until(lambda: logs_in(pooler), 8, "a login with the new password")


def test_both_users_of_an_alternating_rotation_are_served(
    new_pooler: PoolerFixture, secrets_service: SecretsService
) -> None:
    """When the secret names the second user, clients with the first one's password go on."""
    pooler = new_pooler.start(REFRESH_INTERVAL="0.3")
    first = pooler.login
    second = create_login(pooler.postgres, secrets_service, "second")
    secrets_service.put(first.arn, {"username": second.name, "password": "second"})
    pooler.login = second
    wait_until(lambda: logs_in(pooler), 5, "a login as the second user")
    pooler.login = first
    assert logs_in(pooler)


def test_a_changed_certificate_is_served_without_a_restart(new_pooler: PoolerFixture) -> None:
    """New connections see the new certificate; the open one is not cut."""
    pooler = new_pooler.start(REFRESH_INTERVAL="0.3")
    before, child = served_certificate(pooler), pgbouncer_of(pooler).pid
    with pooler.connect() as old:
        pooler.service.put(pooler.certificate_arn, pooler.certificate_content("127.0.0.1"))
        pooler.process.reload()
        wait_until(lambda: served_certificate(pooler) != before, 5, "the new certificate")
        assert answer(old) == 1
    assert pgbouncer_of(pooler).pid == child


def test_a_client_that_refuses_the_certificate_brings_the_new_one(
    pooler: PoolerFixture, tmp_path: Path
) -> None:
    """With an hour between looks at it: nobody is refused for longer than the renewal takes."""
    other = tmp_path / "other.pem"
    other.write_text(Authority.create("other").pem)
    before = served_certificate(pooler)
    pooler.service.put(pooler.certificate_arn, pooler.certificate_content("127.0.0.1"))
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        pooler.connect(sslrootcert=str(other))
    wait_until(lambda: served_certificate(pooler) != before, 8, "the new certificate")


def test_the_certificate_is_asked_for_once_in_an_hour(
    new_pooler: PoolerFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look is paid for: those for a new password do not ask for the certificate."""
    asked: Counter[str] = Counter()
    answer_as_before = SecretsManagerBackend.get_secret_value

    def count(backend: SecretsManagerBackend, secret_id: str, *args: Any, **options: Any) -> Any:
        asked[secret_id] += 1
        return answer_as_before(backend, secret_id, *args, **options)

    monkeypatch.setattr(SecretsManagerBackend, "get_secret_value", count)
    pooler = new_pooler.start(REFRESH_INTERVAL="0.1")
    wait_until(lambda: asked[pooler.login.arn] > 10, 20, "ten looks")
    assert asked[pooler.certificate_arn] == 1


def test_a_certificate_with_another_ones_key_is_not_taken(new_pooler: PoolerFixture) -> None:
    """A broken pair in the secret is logged, and the last good pair stays."""
    pooler = new_pooler.start(REFRESH_INTERVAL="0.2")
    before = served_certificate(pooler)
    broken = pooler.certificate_content("127.0.0.1")
    broken["private_key"] = pooler.certificate_content("127.0.0.1")["private_key"]
    pooler.service.put(pooler.certificate_arn, broken)
    pooler.process.reload()
    wait_until(lambda: "certificate and key do not load" in pooler.log, 5, "the refusal")
    assert served_certificate(pooler) == before
    assert logs_in(pooler)


def test_new_clients_are_served_while_the_secrets_service_is_down(
    new_pooler: PoolerFixture,
) -> None:
    """The last good secrets stay in use, and the log says why."""
    service = SecretsService()
    new_pooler.login = create_login(new_pooler.postgres, service, "separate")
    new_pooler.certificate_arn = service.create(new_pooler.certificate_content("127.0.0.1"))
    new_pooler.start(
        **service.environment,
        USER_SECRET_ARNS=new_pooler.login.arn,
        CERTIFICATE_SECRET_ARN=new_pooler.certificate_arn,
        REFRESH_INTERVAL="0.2",
    )
    service.stop()
    wait_until(lambda: "keeping the last good one" in new_pooler.log, 15, "a failed look")
    assert logs_in(new_pooler)


def test_a_secret_without_a_password_yet_is_waited_for(new_pooler: PoolerFixture) -> None:
    """The supervisor starts before the secrets are complete, and serves once they are."""
    login = new_pooler.login
    new_pooler.service.put(login.arn, {"username": login.name})
    new_pooler.prepare(REFRESH_INTERVAL="0.2").launch()
    wait_until(lambda: "it has no password (yet)" in new_pooler.log, 10, "the first look")
    new_pooler.service.put(login.arn, {"username": login.name, "password": login.password})
    wait_until(lambda: logs_in(new_pooler), 10, "a login")


def test_a_secret_that_changes_while_pgbouncer_starts_does_not_end_it(
    new_pooler: PoolerFixture,
) -> None:
    """A SIGHUP kills a PgBouncer that does not listen yet: the supervisor waits until it does."""
    slow = ("sh", "-c", 'sleep 1; exec "$@"', "sh", *new_pooler.binary.command)
    new_pooler.binary = replace(new_pooler.binary, command=slow)
    new_pooler.prepare(REFRESH_INTERVAL="0.05").launch()
    wait_until(lambda: "PgBouncer runs as process" in new_pooler.log, 30, "the start")
    new_pooler.rotate_password("the-next-password")
    wait_until(lambda: logs_in(new_pooler), 10, "a login with the new password")


# Settings


def test_pgbouncer_takes_every_setting_as_it_is_written(kept_pooler: PoolerFixture) -> None:
    """A name that it did not know, or a value that it read otherwise, would show here."""
    parser = ConfigParser(interpolation=None)
    parser.read(kept_pooler.process.run_dir / "pgbouncer.ini")
    with psycopg.connect(kept_pooler.process.admin_dsn, autocommit=True) as console:
        in_force = {row[0]: row[1] for row in console.execute("SHOW CONFIG").fetchall()}
    written = dict(parser["pgbouncer"])
    written["unix_socket_mode"] = str(int(written["unix_socket_mode"], 8))
    assert len(written) > 30
    assert {name: in_force.get(name) for name in written} == written


@pytest.mark.skipif(
    not can_blackhole(), reason="this kernel lets only root drop a socket's packets, or nobody"
)
def test_a_server_that_has_gone_without_a_word_is_given_up(new_pooler: PoolerFixture) -> None:
    """A failover may leave connections that nobody answers: each ends, instead of being kept."""
    with FaultProxy("127.0.0.1", new_pooler.postgres.port) as proxy:
        pooler = new_pooler.start(DATABASE_PORT=str(proxy.port), MAX_DB_CONNECTIONS="1")
        with pooler.connect() as client:
            assert answer(client) == 1
            with (
                proxy.blackhole(connections="open"),
                pytest.raises(psycopg.OperationalError, match="server conn crashed"),
            ):
                answer(client)
        assert logs_in(pooler)


# The end


def test_a_drain_lets_a_transaction_commit_and_refuses_the_rest(pooler: PoolerFixture) -> None:
    """SIGTERM: the open transaction commits, an idle client is told, and the exit code is 0."""
    with psycopg.connect(pooler.postgres.dsn, autocommit=True) as master:
        master.execute("CREATE TABLE IF NOT EXISTS drained (name text)")
        master.execute("GRANT ALL ON drained TO public")
    busy, idle = pooler.connect(), pooler.connect()
    assert answer(idle) == 1
    busy.execute("BEGIN")
    busy.execute("INSERT INTO drained VALUES (current_user)")
    pooler.process.terminate()
    wait_until(lambda: "got SIGINT" in pooler.log, 5, "the drain")
    with pytest.raises(psycopg.OperationalError, match="server shutting down"):
        answer(idle)
    busy.execute("COMMIT")
    assert pooler.process.wait(10) == 0
    with psycopg.connect(pooler.postgres.dsn) as master:
        committed = master.execute(
            "SELECT count(*) FROM drained WHERE name = %s", [pooler.login.name]
        )
        assert committed.fetchone() == (1,)
    for connection in (busy, idle):
        connection.close()


def test_a_drain_with_idle_clients_is_short(pooler: PoolerFixture) -> None:
    """Pooled clients never leave by themselves; the drain refuses them and does not wait.

    It stays for a second although nothing is open: statements that are on their way get a refusal.
    """
    with pooler.connect() as idle:
        assert answer(idle) == 1
        begin = time.monotonic()
        pooler.process.terminate()
        wait_until(lambda: "got SIGINT" in pooler.log, 5, "the drain")
        with pytest.raises(psycopg.OperationalError, match="server shutting down"):
            answer(idle)
        assert pooler.process.wait(10) == 0
    assert 1 < time.monotonic() - begin < 4


def test_a_drain_leaves_no_statement_in_doubt(pooler: PoolerFixture) -> None:
    """Clients in the middle of their work get an acknowledgement or a clean refusal, never less.

    Each row that was acknowledged is there, and none that was not.
    """
    with psycopg.connect(pooler.postgres.dsn, autocommit=True) as master:
        master.execute("CREATE TABLE IF NOT EXISTS doubtful (name text)")
        master.execute("GRANT ALL ON doubtful TO public")
    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        clients = [threads.submit(insert_until_refused, pooler) for _ in range(16)]
        wait_until(lambda: inserted(pooler) > 500, 10, "clients at work")
        pooler.process.terminate()
        outcomes = [client.result(20) for client in clients]
    assert pooler.process.wait(10) == 0
    assert [text for _, text in outcomes if "server shutting down" not in text] == []
    assert sum(count for count, _ in outcomes) == inserted(pooler)


def insert_until_refused(pooler: PoolerFixture) -> tuple[int, str]:
    """Insert row after row; return the number of acknowledged ones, and what ended it."""
    acknowledged = 0
    with pooler.connect() as connection:
        try:
            while True:
                connection.execute("INSERT INTO doubtful VALUES (current_user)")
                acknowledged += 1
        except psycopg.OperationalError as error:
            return acknowledged, str(error)


def inserted(pooler: PoolerFixture) -> int:
    """Count this test's rows, past the pooler."""
    with psycopg.connect(pooler.postgres.dsn) as master:
        row = master.execute(
            "SELECT count(*) FROM doubtful WHERE name = %s", [pooler.login.name]
        ).fetchone()
    assert row is not None
    return int(row[0])


def test_a_drain_ends_although_a_transaction_does_not(new_pooler: PoolerFixture) -> None:
    """DRAIN_TIMEOUT bounds the wait for a client that never commits."""
    pooler = new_pooler.start(DRAIN_TIMEOUT="1.5")
    with contextlib.suppress(psycopg.OperationalError), pooler.connect() as busy:
        busy.execute("BEGIN")
        busy.execute("SELECT 1")
        begin = time.monotonic()
        pooler.process.terminate()
        pooler.process.wait(10)
    assert time.monotonic() - begin < 5
    assert "sending SIGQUIT" in pooler.log


def test_a_drain_does_not_wait_for_a_silent_secrets_service(new_pooler: PoolerFixture) -> None:
    """SIGTERM ends a look at secrets that may never be answered."""
    service = SecretsService()
    new_pooler.login = create_login(new_pooler.postgres, service, "separate")
    leaf = service.create(new_pooler.certificate_content("127.0.0.1"))
    new_pooler.start(
        **service.environment,
        USER_SECRET_ARNS=new_pooler.login.arn,
        CERTIFICATE_SECRET_ARN=leaf,
        REFRESH_INTERVAL="0.2",
    )
    port = int(service.url.rpartition(":")[2])
    service.stop()
    with socket.create_server(("127.0.0.1", port)) as silent:
        silent.settimeout(15)
        look, _ = silent.accept()
        with look:
            begin = time.monotonic()
            assert new_pooler.process.stop() == 0
    assert time.monotonic() - begin < 2.5


def test_a_killed_supervisor_takes_pgbouncer_with_it(pooler: PoolerFixture) -> None:
    """No PgBouncer is left behind that nobody would reload or drain."""
    child = pgbouncer_of(pooler)
    pooler.process.kill()
    child.wait(5)
    assert not child.is_running()


def test_a_pooler_starts_again_where_another_was_killed(pooler: PoolerFixture) -> None:
    """What a killed one has left, its socket and its files, is in nobody's way."""
    before = pooler.process.admin_dsn
    pooler.process.kill()
    pooler.process.start()
    assert logs_in(pooler)
    assert pooler.process.admin_dsn != before
    assert pooler.process.stop() == 0


def test_the_supervisor_ends_with_pgbouncer(pooler: PoolerFixture) -> None:
    """A crash of PgBouncer ends the task, so that a new one is started."""
    os.kill(pgbouncer_of(pooler).pid, signal.SIGKILL)
    assert pooler.process.wait(5) == 128 + signal.SIGKILL


# What goes wrong at the start


def test_more_clients_than_open_files_are_refused_with_the_numbers(
    new_pooler: PoolerFixture,
) -> None:
    """A limit that would only show under load stops the start."""
    process = new_pooler.prepare(MAX_CLIENT_CONN="99999", MAX_DB_CONNECTIONS="9999")
    process.launch()
    with pytest.raises(PoolerError, match="MAX_CLIENT_CONN is 99999"):
        wait_until(process.answers, 10, "an answer")


def test_a_pgbouncer_that_dies_before_it_listens_ends_the_supervisor(
    new_pooler: PoolerFixture,
) -> None:
    """At once, with its code: nobody waits for the next look at the secrets."""
    process = with_program(new_pooler, "sleep 0.3; exit 3").prepare(REFRESH_INTERVAL="3600")
    process.launch()
    assert process.wait(20) == 3


# More lines than the supervisor has copied by the time it learns of the end; a pipe holds them.
LAST_WORDS = "yes | head -n 8000; echo canary of the end"


def test_the_reason_of_a_death_is_in_the_log(new_pooler: PoolerFixture) -> None:
    """What PgBouncer says last is what everybody wants to read."""
    process = with_program(new_pooler, f"sleep 0.3; {LAST_WORDS}; exit 3").prepare()
    process.launch()
    assert process.wait(20) == 3
    assert "canary of the end" in new_pooler.log


def test_what_is_said_during_a_drain_is_in_the_log(new_pooler: PoolerFixture) -> None:
    """Up to the last line, as after any other end."""
    script = f"trap '{LAST_WORDS}; exit 0' INT; echo ready; while :; do sleep 0.05; done"
    process = with_program(new_pooler, script).prepare()
    process.launch()
    wait_until(lambda: "ready" in new_pooler.log, 20, "the trap")
    process.terminate()
    assert process.wait(20) == 0
    assert "canary of the end" in new_pooler.log


def test_missing_variables_are_named(new_pooler: PoolerFixture) -> None:
    """All problems come at once, each with the variable's name."""
    process = new_pooler.prepare(DATABASE_HOST="", MAX_CLIENT_CONN="many")
    process.launch()
    with pytest.raises(PoolerError, match=r"DATABASE_HOST is missing; MAX_CLIENT_CONN is 'many'"):
        wait_until(process.answers, 10, "an answer")
    assert process.wait(1) == 78


def test_no_secret_reaches_log_or_command_line(new_pooler: PoolerFixture) -> None:
    """Passwords and keys appear in no log line, even when logins fail and secrets change."""
    pooler = new_pooler.start(REFRESH_INTERVAL="0.2")
    canaries = [pooler.login.password, "canary-next", "canary-wrong"]
    commands = [psutil.Process(pooler.process.pid).cmdline(), pgbouncer_of(pooler).cmdline()]
    with pytest.raises(psycopg.OperationalError):
        pooler.connect(password="canary-wrong")
    pooler.rotate_password("canary-next")
    wait_until(lambda: logs_in(pooler), 5, "a login with the new password")
    pooler.service.client.put_secret_value(SecretId=pooler.login.arn, SecretString="canary-next{")
    wait_until(lambda: "not a JSON object" in pooler.log, 5, "a broken secret")
    canaries.append(pooler.process.admin_dsn.split(":")[2].split("@")[0])
    pooler.process.stop()
    text = (pooler.folder / "pgbouncer.log").read_text() + str(commands)
    assert "PRIVATE KEY" not in text
    assert [canary for canary in canaries if canary in text] == []
    assert DATABASE in text
