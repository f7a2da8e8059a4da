"""Verdicts on a measured recovery, and the parts that slow its pooler down."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import psycopg
import pytest

from benchmarks.chaos import long, recovery
from benchmarks.chaos.recovery import PLAN, Balancer, Brake, Login, verdicts
from benchmarks.storm.accounting import seconds_of
from benchmarks.tables import recovery_table
from lambda_pg_cdk.local import processes


def row(**changed: Any) -> dict[str, Any]:
    """A row of a quiet machine that kept every promise."""
    return {
        "policy": "kept",
        "environments": 1000,
        "away": 11.4,
        "share": 0.25,
        "used": 0.2,
        "busy": 1.3,
        "waited": 0.1,
        "others": 0.02,
        "logins_alone": 6.4,
        "promised": 14.8,
        "recovered": 11.0,
    } | changed


def test_logins_take_what_the_slower_side_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small share of a core holds them up; clients on two cores hold a whole one up."""
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    login = Login(pooler=0.002, client=0.004)
    assert login.alone(1000, 0.25) == pytest.approx(8.0)
    assert login.alone(1000, 0.5) == pytest.approx(4.0)
    assert login.alone(1000, 1.0) == pytest.approx(3.0)


def test_a_row_in_time_breaks_no_promise() -> None:
    """Nor does a control that was late, however busy the machine was."""
    late = row(policy="naive", recovered=None)
    assert verdicts([row(), row(recovered=14.8), late, row(others=0.9, waited=0.9)]) == ([], [])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"recovered": 14.9}, "recovered 14.9 s after the fault; the limit is 14.8 s"),
        ({"recovered": None}, "recovered not at all"),
        ({"recovered": 16.6, "busy": 9.0}, "recovered 16.6 s after the fault"),
        ({"recovered": 16.6, "others": 0.9}, "recovered 16.6 s after the fault"),
        ({"recovered": 16.6, "waited": 0.9}, "recovered 16.6 s after the fault"),
        ({"policy": "naive"}, "the control, which discards logins, recovered too (11.0 s"),
        ({"used": 0.5}, "PgBouncer used 0.5 of a core: the row proves nothing"),
    ],
)
def test_a_broken_promise_of_a_row_is_named(changed: dict[str, Any], says: str) -> None:
    """With the fleet, the outage and the share; a wait alone is not an excuse."""
    (broken,), unmeasured = verdicts([row(), row(**changed)])
    assert broken.startswith("1000 environments, 11 s without a pooler, 0.25 of a core: ")
    assert says in broken
    assert unmeasured == []


def test_a_row_without_processors_is_not_measurable() -> None:
    """Other programs used them, and the pooler or its clients waited for one."""
    broken, (unmeasured,) = verdicts([row(recovered=16.6, others=0.3, waited=0.4)])
    assert broken == []
    assert "the limit is 14.8 s; other programs used 30% of the processors" in unmeasured


def test_the_plan_has_every_size_of_task_for_1000_environments() -> None:
    """And the control at the smallest, where the pooler is slower than the requests."""
    large = {(each.share, each.policy) for each in PLAN if each.environments == 1000}
    assert large == {(share, "kept") for share in (0.25, 0.5, 1.0)} | {(0.25, "naive")}


def test_a_long_run_that_could_not_be_measured_is_not_green(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its exit code is not that of a failure either."""
    recovered = {"rows": [row()], "missed": [], "unmeasured": ["it was late"]}
    monkeypatch.setattr(sys, "argv", ["long"])
    monkeypatch.setattr(long, "run", lambda _: {"recovery": recovered})
    monkeypatch.setattr(long, "shortfalls", lambda _: [])
    monkeypatch.setattr(long, "crashes_table", lambda _: "")
    monkeypatch.setattr(long, "recovery_table", lambda _: "")
    assert long.main() == 3
    assert "NOT MEASURABLE HERE: it was late" in capsys.readouterr().err


def test_the_table_shows_the_share_of_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """And how much longer the pooler's work took."""
    monkeypatch.setattr("benchmarks.tables.notes", lambda _: "")
    line = "| lambda-pg | 1000 | 0.25 | 11 s | 6.4 s | 14.8 s | 11.0 s | 1.3 |"
    assert line in recovery_table({"recovery": {"rows": [row()]}})


# The pooler's task


@contextmanager
def at_work() -> Iterator[psutil.Process]:
    """A process that uses all the processor time that it gets."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        yield psutil.Process(process.pid)
        process.kill()


def test_a_brake_gives_a_process_its_share_and_no_more() -> None:
    """Counted in processor time; afterwards the process runs at full speed."""
    with at_work() as process:
        with Brake(0.25) as brake:
            brake.slow(process)
            began, before = time.monotonic(), seconds_of(process.pid)
            time.sleep(2)
            used, seconds = seconds_of(process.pid) - before, time.monotonic() - began
        assert 0 < used < 0.35 * seconds
        free = seconds_of(process.pid)
        processes.wait_until(lambda: seconds_of(process.pid) > free + 0.2, 30, "its freedom")
        assert process.status() != psutil.STATUS_STOPPED


def test_a_process_that_owes_more_than_a_period_rests_for_all_of_it() -> None:
    """So its share is right over time, however late a check came."""
    with at_work() as process:
        processes.wait_until(lambda: seconds_of(process.pid) > 0.1, 30, "its work")
        used = seconds_of(process.pid)
        assert Brake(0.25)._spend(process, -recovery.PERIOD) == -recovery.PERIOD
        assert seconds_of(process.pid) - used < 0.5 * recovery.PERIOD


def test_a_process_that_has_gone_needs_no_brake() -> None:
    """It was killed on purpose."""
    with at_work() as process:
        pass
    assert Brake(0.25)._spend(process, 0.0) <= 0


def test_a_balancer_without_a_task_refuses() -> None:
    """As a load balancer without a healthy target does: clients fail at once."""
    port = processes.free_port()
    with Balancer(port) as balancer:
        balancer.register()
        with pytest.raises(psycopg.OperationalError, match="refused"):
            psycopg.connect(f"host=127.0.0.1 port={balancer.port} dbname=app")
