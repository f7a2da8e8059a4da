"""The pooler's numbers without a PgBouncer: what counts, what is compared, how it is written."""

import pytest

from lambda_pg_cdk.pgbouncer.metrics import (
    COUNTED,
    UNITS,
    Tally,
    levels_of,
    rates_of,
    render,
    totals_of,
)
from lambda_pg_cdk.pgbouncer.session import Row
from lambda_pg_cdk.pgbouncer.settings import MetricsSettings
from tests.support.embedded_metrics import assert_embedded_metrics

SETTINGS = MetricsSettings(60, "LambdaPg", "dev")
AT = b"2026-11-25 19:09:43.884 UTC [6982] WARNING C-0x5555: app/app_user@10.0.1.2:54496 "
NOBODY = b"2026-11-25 19:09:43.884 UTC [6982] WARNING C-0x5555: (nodb)/(nouser)@10.0.1.2:54496 "
POOL: Row = {
    "database": "app",
    "user": "app_user",
    "cl_active": "7",
    "cl_waiting": "3",
    "cl_active_cancel_req": "1",
    "cl_waiting_cancel_req": "1",
    "sv_active": "4",
    "sv_active_cancel": "1",
    "sv_being_canceled": "1",
    "sv_idle": "2",
    "sv_used": "1",
    "sv_tested": "1",
    "sv_login": "1",
    "maxwait": "1",
    "maxwait_us": "250000",
    "pool_mode": "transaction",
    "load_balance_hosts": None,
}


# Log lines


@pytest.mark.parametrize(
    ("line", "counted"),
    [
        (AT + b"pooler error: query_wait_timeout\n", "QueueTimeouts"),
        (
            NOBODY + b"pooler error: no more connections allowed (max_client_conn)\n",
            "RefusedConnections",
        ),
        (AT + b"pooler error: SASL authentication failed\n", "FailedLogins"),
        (
            AT.replace(b"app/app_user", b"(nodb)/a b")
            + b"pooler error: SASL authentication failed\n",
            "FailedLogins",
        ),
        (
            AT + b"pooler error: client connections exceeded (max_db_client_connections)\n",
            "RefusedConnections",
        ),
        (NOBODY + b"pooler error: no authentication method is found\n", "FailedLogins"),
        (AT + b"pooler error: login rejected\n", "FailedLogins"),
        (AT.replace(b"WARNING", b"ERROR") + b"password authentication failed\n", None),
        (
            AT.replace(b"WARNING", b"LOG")
            + b"no such user: x pooler error: SASL authentication failed\n",
            None,
        ),
        (AT + b'pooler error: password authentication failed for user "app_user"\n', None),
        (AT + b"pooler error: client_login_timeout (server down)\n", None),
        (AT + b"pooler error: no such user: query_wait_timeout\n", None),
        (AT + b"unsupported startup parameter: a=pooler error: query_wait_timeout\n", None),
        (AT + b"pooler error: no such database: b pooler error: query_wait_timeout\n", None),
        (
            AT.replace(b"WARNING", b"LOG") + b"no such user: a pooler error: query_wait_timeout\n",
            None,
        ),
        (b"LOG got SIGHUP, re-reading config\n", None),
    ],
)
def test_a_log_line_counts_when_pgbouncer_turned_somebody_away(
    line: bytes, counted: str | None
) -> None:
    """The texts are PgBouncer's own, as captured from 1.24.1."""
    tally = Tally("app")
    tally.note(line)
    tally.note(line)
    assert tally.take() == {"app": {name: 2 if name == counted else 0 for name in COUNTED}}


@pytest.mark.parametrize(
    "lines",
    [
        (
            NOBODY.partition(b"(nouser)")[0] + b"a\n",
            b"\t" + AT + b"pooler error: query_wait_timeout\n",
        ),
        (AT + b"pooler error: query_wait_timeout\n", b"\t@10.0.1.2:5 pooler error: no such user\n"),
    ],
)
def test_what_a_client_has_broken_into_lines_does_not_count(lines: tuple[bytes, ...]) -> None:
    """PgBouncer puts a tab in front of what follows a line break in a name."""
    tally = Tally("app")
    for line in lines:
        tally.note(line)
    tally.note(AT + b"pooler error: query_wait_timeout\n")
    assert tally.take()["app"]["QueueTimeouts"] == 1


def test_a_line_counts_in_one_interval_only() -> None:
    """What was told is forgotten."""
    tally = Tally("app")
    tally.note(AT + b"pooler error: query_wait_timeout\n")
    assert tally.take()["app"]["QueueTimeouts"] == 1
    assert tally.take()["app"]["QueueTimeouts"] == 0


def test_the_two_names_of_a_database_are_counted_apart() -> None:
    """A busy `/sql` must not look like a busy application; what has no name is the first one's."""
    tally = Tally("app", "app_sql")
    message = b"pooler error: query_wait_timeout\n"
    others = (AT, NOBODY, AT.replace(b"app/", b"app_sqlx/"), AT.replace(b"app/", b"(nodb)/app_sql"))
    for start in (*others, AT.replace(b"app/", b"app_sql/")):
        tally.note(start + message)
    counts = tally.take()
    assert counts["app"]["QueueTimeouts"] == len(others)
    assert counts["app_sql"]["QueueTimeouts"] == 1


# The console's answers


def test_levels_are_summed_over_the_pools_and_the_worst_is_taken() -> None:
    """Each user has a pool; a waiting client is a client, and idle server connections are free.

    A rotation's second user has a pool of the same size, mostly empty: the fullest one tells.
    """
    other = POOL | {"user": "other", "cl_waiting": "0", "maxwait": "0", "maxwait_us": "500"}
    assert levels_of([POOL, other], 16) == {
        "ClientConnections": 17,
        "ClientsWaiting": 3,
        "MaxWait": 1.25,
        "ServerConnections": 22,
        "ServerConnectionsUsed": 50,
    }


def test_without_a_pool_every_level_is_zero() -> None:
    """Before the first client PgBouncer has no row for the database."""
    assert set(levels_of([], 20).values()) == {0}
    assert set(totals_of([]).values()) == {0}


@pytest.mark.parametrize("broken", [{"maxwait": None}, {"cl_active": "many"}])
def test_a_level_that_is_no_number_is_an_error(broken: Row) -> None:
    """A guess would be worse than a gap."""
    with pytest.raises(ValueError, match=r"NULL|many"):
        levels_of([POOL | broken], 20)


def test_rates_are_what_has_come_since_the_last_answer() -> None:
    """The wait is in microseconds in PgBouncer, and an average in milliseconds here."""
    before = totals_of(
        [{"total_query_count": "10", "total_xact_count": "5", "total_wait_time": "4000"}]
    )
    now = totals_of(
        [{"total_query_count": "30", "total_xact_count": "15", "total_wait_time": "64000"}]
    )
    assert rates_of(now, before) == {"Queries": 20, "Transactions": 10, "QueueTime": 3}


def test_without_a_query_there_is_no_average_wait() -> None:
    """A zero would tell of a queue that nobody has seen."""
    totals = totals_of(
        [{"total_query_count": "1", "total_xact_count": "1", "total_wait_time": "9"}]
    )
    assert rates_of(totals, totals) == {"Queries": 0, "Transactions": 0}


def test_totals_that_have_shrunk_count_as_nothing() -> None:
    """PgBouncer forgets what a pool had counted when it drops the pool."""
    assert rates_of(
        {"total_query_count": 1, "total_xact_count": 1, "total_wait_time": 0},
        {"total_query_count": 9, "total_xact_count": 9, "total_wait_time": 9},
    ) == {"Queries": 0, "Transactions": 0}


# The line


def test_a_line_follows_the_rules_of_the_format() -> None:
    """Each metric that is declared is there, a number with a unit, and so is the dimension."""
    root = assert_embedded_metrics(render(dict.fromkeys(UNITS, 0.5), SETTINGS, 1234.5678))
    (directive,) = root["_aws"]["CloudWatchMetrics"]
    assert root["_aws"]["Timestamp"] == 1234567
    assert directive["Namespace"] == "LambdaPg"
    assert directive["Dimensions"] == [["Pooler"]]
    assert root["Pooler"] == "dev"
    assert {metric["Name"]: metric["Unit"] for metric in directive["Metrics"]} == UNITS
    assert {name: root[name] for name in UNITS} == dict.fromkeys(UNITS, 0.5)


def test_a_metric_without_a_value_is_not_declared() -> None:
    """One that is declared and missing makes the whole line invalid."""
    root = assert_embedded_metrics(render({"Queries": 0}, SETTINGS, 1))
    assert root["_aws"]["CloudWatchMetrics"][0]["Metrics"] == [{"Name": "Queries", "Unit": "Count"}]
    assert "QueueTime" not in root


def test_a_second_name_has_a_dimension_more() -> None:
    """Alarms on the first name's metrics do not see the second one's."""
    root = assert_embedded_metrics(render({"Queries": 1}, SETTINGS, 1, "app_sql"))
    assert root["_aws"]["CloudWatchMetrics"][0]["Dimensions"] == [["Pooler", "Database"]]
    assert (root["Pooler"], root["Database"]) == ("dev", "app_sql")
