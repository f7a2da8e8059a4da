"""The storm's plan, tables, sums and goals, on made-up results."""

import asyncio
import copy
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from benchmarks import demo
from benchmarks.conclusion import NOT_MEASURABLE, conclude
from benchmarks.storm import open_loop
from benchmarks.storm.accounting import CpuSeconds, Waits
from benchmarks.storm.connections import ConnectionLog, Observed, changes, most_within, observe
from benchmarks.storm.goals import (
    goals,
    ratios,
    shortfalls,
    unmeasured,
    verdict,
    without_a_processor,
)
from benchmarks.storm.limits import (
    MOST_CHECKOUT,
    MOST_FUNCTION,
    MOST_QUEUE,
    Limits,
    calibrated,
)
from benchmarks.storm.meter import others_share
from benchmarks.storm.rows import (
    Driver,
    Result,
    Row,
    Stage,
    answered_between,
    median_run,
    our_driver,
)
from benchmarks.storm.run import (
    COMPARED,
    CONTROLS,
    HOME,
    OTHER_SIZES,
    PEERS,
    concluded,
    peers,
    planned,
)
from benchmarks.storm.second_driver import outcomes_of
from benchmarks.tables import STORM_TITLES, storm_table
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.http.load import FunctionLog, Outcome, summarise
from lambda_pg_cdk.stage.loading import load_stage
from lambda_pg_cdk.stage.sources import FUNCTIONS

TOKEN = "a-token"


# Plan


def test_the_plan_has_every_row() -> None:
    """Controls, ways without the layer, peers, and lambda-pg at every size."""
    rows = [(row["name"], row["environments"], row["max_connections"]) for row in planned()]
    others = ("baseline", "cached-direct", "connect-through-pooler", "psycopg_pool", "sqlalchemy")
    assert [row for row in rows if not row[0].startswith("lambda-pg")] == [
        (name, 500, 100) for name in others
    ]
    assert sorted(row[1:] for row in rows if row[0] == "lambda-pg") == [
        (50, 100),
        (100, 100),
        (200, 100),
        (500, 25),
        (500, 100),
        (1000, 100),
    ]
    cold = {"name": "lambda-pg-cold", "environments": 50, "start": "cold", "max_connections": 100}
    assert [row for row in planned() if row["start"] == "cold"] == [cold]


def test_every_row_has_a_function() -> None:
    """In a folder of the benchmarks or of the project."""
    for row in CONTROLS + COMPARED + OTHER_SIZES:
        assert any((home / row.function / "handler.py").exists() for home in (HOME, FUNCTIONS))


def test_peers_are_named_with_the_versions_that_are_deployed() -> None:
    """Those in the functions' lock files, not those of this environment."""
    for function, (name, version) in zip(PEERS, peers().items(), strict=True):
        assert f"\n{name}=={version} " in (HOME / function / "requirements.txt").read_text()


# Goals

QUIET: dict[str, Any] = {
    "others": 0.02,
    "waits": {"environment": 4.5, "server": 1.0},
    "seconds": 6.0,
}
"""Readings of a storm on a quiet machine: its requests wait for each other."""

BUSY: dict[str, Any] = {
    "others": 0.5,
    "waits": {"environment": 9.0, "server": 4.0},
    "seconds": 30.0,
}
"""Readings beside another busy program on each core."""

CALIBRATION: dict[str, Any] = {
    "requests": 50,
    "seconds": 0.5,
    "environments": 1000,
    "needed": 10.0,
    "most": 20,
    "limits": {"queue": 5, "checkout": 20, "function": 23},
}
CPU = {
    "functions": 6.0,
    "pgbouncer": 2.0,
    "postgresql": 0.2,
    "daemon": 0.6,
    "control_plane": 0.3,
    "balancer": 0.3,
    "load": 0.3,
}


def row_of(plan: dict[str, Any]) -> dict[str, Any]:
    """Make a row of the result that keeps every promise."""
    count = plan["environments"]
    failed = {"baseline": count // 2, "cached-direct": count // 5}.get(plan["name"], 0)
    budget = 20 if plan["max_connections"] == 100 else 4
    times = {f"{name}_ms": 1000.0 for name in ("p50", "p95", "p99", "max")}
    if plan["name"] == "lambda-pg":
        times |= {"p50_ms": 700.0, "p99_ms": 1760.0 if count == 1000 else 800.0}
    return {
        **plan,
        **times,
        "requests": count,
        "served": count - failed,
        "failed": failed,
        "failures": {},
        "budget": budget,
        "throughput_rps": 50.0,
        "cpu": CPU,
        "peak_server_connections": budget,
        "runs": [],
        "again": again(plan),
        **QUIET,
    }


def again(plan: dict[str, Any]) -> dict[str, Any] | None:
    """Make the second requests of a row that has them."""
    if plan["environments"] != 500 or plan["max_connections"] != 100:
        return None
    p50 = {"lambda-pg": 500.0, "connect-through-pooler": 1000.0}.get(plan["name"])
    return None if p50 is None else {"requests": 500, "failed": 0, "p50_ms": p50}


def size_of(environments: int) -> dict[str, Any]:
    """Make a size of the open loop that keeps every promise."""
    return {
        "environments": environments,
        "failed": 0,
        "p50_ms": 9.0 if environments > 50 else 6.0,
        "rate": 380.0,
        "environments_at_end": environments,
        **QUIET,
    }


def driven(served: int, p50: float) -> dict[str, Any]:
    """Make one storm of a driver, with which the API agrees."""
    failed = 500 - served
    said = {"requests": 500, "served": served, "failed": failed, "p50_ms": p50}
    return {**said, "api_served": served, "api_failed": failed}


def compared(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Make a row of both drivers, of one run each."""
    runs = {"ours": [ours], "locust": [theirs]}
    return {"name": name, "ours": ours, "locust": theirs, "runs": runs}


@pytest.fixture
def result() -> dict[str, Any]:
    """A result that meets every goal narrowly."""
    return copy.deepcopy(
        {
            "max_connections": 100,
            "budget": 20,
            "calibration": CALIBRATION,
            "planned": planned(),
            "rows": list(map(row_of, planned())),
            "open_loop": {"offered_rps": 400.0, "sizes": list(map(size_of, (50, 500, 1000)))},
            "second_driver": {
                "rows": [
                    compared("lambda-pg", driven(500, 5000.0), driven(500, 6250.0)),
                    compared("baseline", driven(100, 4000.0), driven(120, 9000.0)),
                ]
            },
            "seconds": 600.0,
        }
    )


def named(result: dict[str, Any], name: str, environments: int = 500) -> dict[str, Any]:
    """Find a row at max_connections 100."""
    found: dict[str, Any] = next(
        row
        for row in result["rows"]
        if (row["name"], row["environments"], row["max_connections"]) == (name, environments, 100)
    )
    return found


def test_a_result_that_meets_every_goal_is_a_passed_run(result: dict[str, Any]) -> None:
    """No shortfall means that every goal was met; each goal has its numbers."""
    assert shortfalls(result) == []
    assert all(goal.held and goal.found for goal in goals(result))


@pytest.mark.parametrize(
    ("name", "environments", "changed", "complaint"),
    [
        ("baseline", 500, {"failed": 249}, "the control fails at least 50%: 249 of 500"),
        ("cached-direct", 500, {"failed": 99}, "the control fails at least 20%: 99 of 500"),
        ("lambda-pg", 1000, {"failed": 1}, "no request fails: 1 of 1000"),
        ("lambda-pg-cold", 50, {"failed": 1}, "no request fails: 1 of 50"),
        ("lambda-pg", 50, {"peak_server_connections": 21}, "the budget of 20: peak 21"),
    ],
)
def test_a_row_that_breaks_a_promise_is_named(
    result: dict[str, Any], name: str, environments: int, changed: dict[str, Any], complaint: str
) -> None:
    """A control that does not fail breaks the run, too."""
    named(result, name, environments).update(changed)
    (broken,) = shortfalls(result)
    assert broken.startswith(f"{name} with {environments} environments: ")
    assert complaint in broken


def test_the_small_server_has_a_budget_of_its_own(result: dict[str, Any]) -> None:
    """The budget of the large server is too much for it."""
    small = next(row for row in result["rows"] if row["max_connections"] == 25)
    small["peak_server_connections"] = 5
    (broken,) = shortfalls(result)
    assert broken.startswith("lambda-pg with 500 environments at max_connections 25: ")


def test_peers_have_no_goals(result: dict[str, Any]) -> None:
    """Their results are only shown."""
    named(result, "psycopg_pool").update(failed=7, peak_server_connections=80)
    assert shortfalls(result) == []


@pytest.mark.parametrize(
    ("environments", "changed", "complaint"),
    [
        (500, {"p50_ms": 9.1}, "p50 with 500 environments is at most 1.5 times"),
        (1000, {"failed": 1}, "open loop with 1000 environments: no request fails"),
        (50, {"environments_at_end": 51}, "open loop with 50 environments: the fleet keeps"),
        (50, {"rate": 379.0}, "open loop with 50 environments: at least 95% of the load"),
    ],
)
def test_an_open_loop_that_breaks_a_promise_is_named(
    result: dict[str, Any], environments: int, changed: dict[str, Any], complaint: str
) -> None:
    """A growing fleet may not cost more, and must answer the load."""
    sizes = {size["environments"]: size for size in result["open_loop"]["sizes"]}
    sizes[environments].update(changed)
    (broken,) = shortfalls(result)
    assert complaint in broken


@pytest.mark.parametrize("driver", ["ours", "locust"])
def test_a_driver_that_counts_otherwise_than_the_api_is_named(
    result: dict[str, Any], driver: str
) -> None:
    """Also in a row that fails."""
    result["second_driver"]["rows"][1]["runs"][driver][0]["api_failed"] += 1
    (broken,) = shortfalls(result)
    assert broken.startswith(f"baseline from {driver}: served and failed equal the API's")


def test_drivers_that_differ_are_named(result: dict[str, Any]) -> None:
    """In what was served, and in the median by more than a quarter."""
    lambda_pg = result["second_driver"]["rows"][0]
    lambda_pg["locust"] = {**lambda_pg["locust"], "served": 499, "p50_ms": 6251.0}
    first, second = shortfalls(result)
    assert "both drivers agree on served and failed" in first
    assert "the drivers' p50 differ by at most 25%" in second


def test_a_row_that_is_left_out_and_a_run_that_takes_long_are_named(result: dict[str, Any]) -> None:
    """A row may not be dropped because it looks bad."""
    result["rows"].remove(named(result, "connect-through-pooler"))
    result["seconds"] = 601.0
    missing, late = shortfalls(result)
    assert "missing: ['connect-through-pooler 500 restored 100']" in missing
    assert late.startswith("the run ends within 10 minutes")


def test_every_row_has_a_line_and_says_how_it_started(result: dict[str, Any]) -> None:
    """Restored or cold, and where max_connections is another one."""
    origin = {
        "machine": {"cores": 2, "processor": "p"},
        "versions": {"postgresql": "17", "pgbouncer": "1", "python": "3"},
        "date": "2026-01-02",
        "command": "make storm",
        "caveats": ["c"],
    }
    table = storm_table(result | origin)
    assert {row["name"] for row in result["rows"]} <= set(STORM_TITLES)
    assert table.count(" restored |") == len(result["rows"]) - 1
    assert table.count(" cold |") == table.count("`max_connections` 25 |") == 1


# Open loop


@contextmanager
def served(handler: Callable[[web.BaseRequest], Awaitable[web.Response]]) -> Iterator[str]:
    """Serve a handler from a background thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def listen() -> web.ServerRunner:
        runner = web.ServerRunner(web.Server(handler))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    runner = asyncio.run_coroutine_threadsafe(listen(), loop).result()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_arrivals_come_at_the_rate_and_are_the_same_for_a_seed() -> None:
    """Spaced at random, in order, and none after the end."""
    moments = open_loop.schedule(400, 100, seed=7)
    assert moments == open_loop.schedule(400, 100, seed=7) != open_loop.schedule(400, 100, seed=8)
    assert moments == sorted(moments)
    assert 0 < moments[0] < moments[-1] < 100
    assert len(moments) == pytest.approx(40_000, rel=0.02)
    gaps = [after - before for before, after in itertools.pairwise(moments)]
    assert sum(gap > 1 / 400 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)


def test_latencies_count_from_the_moment_that_was_scheduled() -> None:
    """A request's wait counts: for a server that hangs, and before it is sent."""

    async def stand_still(_: web.BaseRequest) -> web.Response:
        time.sleep(0.3)  # noqa: ASYNC251 - nobody else is served meanwhile, which is the point
        return web.Response()

    with served(stand_still) as url:
        outcomes, taken = open_loop.arrive(url, TOKEN, [0.0, 0.01, 0.02], 3)
        (late,), _ = open_loop.arrive(url, TOKEN, [-5.0], 1)
    assert late.seconds >= 5.3
    assert [outcome.status for outcome in outcomes] == [200] * 3
    first, _, last = (outcome.seconds for outcome in outcomes)
    assert 0.3 <= first < last
    assert last >= 0.9 - 0.02
    assert taken >= 0.9


def test_no_more_requests_are_under_way_than_there_are_environments() -> None:
    """Their wait counts."""
    under_way: list[int] = [0]

    async def answer(_: web.BaseRequest) -> web.Response:
        under_way.append(under_way[-1] + 1)
        await asyncio.sleep(0.1)
        under_way.append(under_way[-1] - 1)
        return web.Response()

    with served(answer) as url:
        outcomes, _ = open_loop.arrive(url, TOKEN, [0.0] * 6, 2)
    assert max(under_way) == 2
    assert max(outcome.seconds for outcome in outcomes) >= 0.3


def test_busy_callers_send_the_next_request_when_they_have_an_answer() -> None:
    """One caller with an answer in a tenth of a second sends about ten a second."""

    async def answer(_: web.BaseRequest) -> web.Response:
        await asyncio.sleep(0.1)
        return web.Response()

    with served(answer) as url:
        outcomes, taken = open_loop.keep_busy(url, TOKEN, callers=3, seconds=0.35)
    assert 3 <= len(outcomes) <= 12
    assert taken >= 0.35


def measure(environments: int, number: int, p50: float, failed: int = 0) -> open_loop.Measure:
    """Make one measure."""
    return open_loop.Measure(
        requests=100,
        served=100 - failed,
        failed=failed,
        failures={},
        p50_ms=p50,
        p95_ms=2 * p50,
        p99_ms=3 * p50,
        max_ms=4 * p50,
        throughput_rps=10.0,
        environments=environments,
        round=number,
        rate=10.0 + number,
        cpu_ms={"postgresql": 0.1 * p50, "functions": 0.2 * p50},
        environments_at_end=environments + number,
        peak_server_connections=number,
        waits=Waits(environment=0.1 * number, server=0.0),
        others=0.1 * number,
        seconds=7.0,
    )


def test_a_size_is_the_median_of_its_rounds_and_keeps_every_failure() -> None:
    """One disturbed round does not change the medians; its failure and peak are reported."""
    measures = [measure(50, 1, 10.0), measure(50, 2, 11.0, failed=3), measure(50, 3, 90.0)]
    found = open_loop.of_size(50, [*measures, measure(500, 1, 99.0)])
    assert (found["p50_ms"], found["p95_ms"], found["max_ms"]) == (11.0, 22.0, 44.0)
    assert (found["requests"], found["failed"], found["rate"]) == (300, 3, 12.0)
    assert found["cpu_ms"] == {"postgresql": 1.1, "functions": 2.2}
    assert (found["peak_server_connections"], found["others"]) == (3, 0.2)
    assert found["environments_at_end"] == 53


def test_growth_relates_every_size_to_the_smallest() -> None:
    """In latency and in processor time."""
    sizes = [open_loop.of_size(n, [measure(n, 1, p50)]) for n, p50 in ((50, 10.0), (500, 12.0))]
    assert open_loop.growth(sizes) == [
        {"environments": 50, "p50": 1.0, "p99": 1.0, "cpu": 1.0},
        {"environments": 500, "p50": 1.2, "p99": 1.2, "cpu": 1.2},
    ]


# Connections and counts

LOG = """\
2026-11-29 10:00:00.000 UTC [7] LOG:  starting PostgreSQL 17.10 on x86_64
2026-11-29 10:00:01.010 UTC [10] [unknown]@[unknown] [unknown] LOG:  connection received: host=127.0.0.1
2026-11-29 10:00:01.020 UTC [10] app@app users LOG:  connection authorized: user=app database=app
2026-11-29 10:00:01.030 UTC [11] app@app users LOG:  connection authorized: user=app database=app
2026-11-29 10:00:01.040 UTC [12] app@app users LOG:  connection authorized: user=app database=app
2026-11-29 10:00:01.041 UTC [12] app@app users FATAL:  remaining connection slots are reserved
2026-11-29 10:00:01.042 UTC [13] app@app [unknown] FATAL:  sorry, too many clients already
2026-11-29 10:00:01.250 UTC [10] app@app users ERROR:  division by zero
2026-11-29 10:00:01.250 UTC [10] app@app users LOG:  disconnection: session time: 0:00:00.230
2026-11-29 10:00:02.000 UTC [11] app@app users FATAL:  terminating connection due to administrator command
2026-11-29 10:00:02.000 UTC [11] app@app users LOG:  disconnection: session time: 0:00:00.970
2026-11-29 10:00:03.000 UTC [14] app@app users LOG:  connection authorized: user=app database=app
2026-11-29 10:00:04.000 UTC [8] LOG:  starting PostgreSQL 17.10 on x86_64
"""  # noqa: E501 - lines as a log has them


def test_a_connection_counts_from_its_login_to_its_end() -> None:
    """A disconnection, a FATAL, or a start of the server ends it."""
    found = list(changes(LOG.splitlines()))
    assert [count for _, count in found] == [0, 1, 2, 3, 2, 2, 1, 0, 0, 1, 0]
    assert found[1][0] - found[0][0] == pytest.approx(1.02)


def test_connections_become_the_peak_of_each_period() -> None:
    """A short connection is in its period, a long one in all that follow."""
    later = [(10.01, 3), (10.05, 9), (10.09, 4), (10.25, 5)]
    assert observe(2, later, 10.0, 10.45) == Observed(9, [9, 4, 5, 5, 5])
    assert observe(7, [], 10.0, 10.25) == Observed(7, [7, 7, 7])
    assert observe(7, [(10.01, 0), (99.0, 50)], 10.0, 10.25) == Observed(7, [7, 0, 0])


def test_the_most_logins_within_a_second_are_found_at_any_moment(tmp_path: Path) -> None:
    """Not only between two full seconds; earlier logins do not count."""
    path = tmp_path / "postgres.log"
    path.write_text(LOG)
    log = ConnectionLog(path)
    assert log.logins() == []
    with path.open("a") as file:
        file.write(LOG.replace("10:00:03.000", "10:00:02.025"))
    logins = log.logins()
    assert [round(at - logins[0], 3) for at in logins] == [0.0, 0.01, 0.02, 1.005]
    assert most_within(logins, 1.0) == 3
    assert most_within(logins[1:], 1.0) == 3
    assert most_within([], 1.0) == 0


def test_other_programs_used_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a share of all processors' time, and never less than 0."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert others_share(busy=20.0, ours=5.0, seconds=10.0) == 0.75
    assert others_share(busy=4.9, ours=5.0, seconds=10.0) == 0.0


# Limits


def test_limits_follow_from_what_raw_requests_took() -> None:
    """Twice that time, but never shorter than deployed or longer than a stage allows."""
    deployed = Limits(queue=2, checkout=15, function=20)
    assert calibrated(50, 0.1, 500, deployed).limits == deployed
    assert calibrated(50, 0.85, 500, deployed).limits == Limits(5, 17, 20)
    slow = calibrated(50, 2.5, 500, deployed)
    assert slow.limits == Limits(5, 20, 23)
    assert (slow.needed, slow.most) == (25.0, 20)
    assert "so 500 need about 25 s" in str(slow)
    limits = slow.limits
    assert limits.queue < limits.checkout < limits.function <= 25


def test_limits_are_settings_of_a_stage() -> None:
    """The stage `local` accepts the longest ones, in which `/sql` has a timeout too."""
    limits = Limits(MOST_QUEUE, MOST_CHECKOUT, MOST_FUNCTION)
    config = load_stage("local", limits.override)
    assert config.sql.enabled
    found = (config.pgbouncer.query_wait_timeout, config.functions.checkout_timeout)
    assert (*found, config.functions.timeout) == (MOST_QUEUE, MOST_CHECKOUT, MOST_FUNCTION)


# Verdicts


def failing(result: dict[str, Any], name: str = "lambda-pg", **evidence: Any) -> dict[str, Any]:
    """Make a request of a row fail, with this evidence."""
    named(result, name).update(failed=1, **evidence)
    return result


def test_a_run_that_meets_every_goal_on_a_busy_machine_passes(result: dict[str, Any]) -> None:
    """A busy machine excuses failures, and takes nothing from successes."""
    for row in result["rows"]:
        row.update(BUSY)
    assert verdict(goals(result)) == "held"
    assert conclude(shortfalls(result), unmeasured(result)) == 0


def test_requests_that_fail_on_a_quiet_machine_have_failed(result: dict[str, Any]) -> None:
    """They wait only for each other; no other program used the processors."""
    assert verdict(goals(failing(result))) == "failed"
    assert conclude(shortfalls(result), unmeasured(result)) == 1


def test_requests_that_had_no_processor_are_not_measurable(result: dict[str, Any]) -> None:
    """Other programs used it and the environments waited; the run says so and is not green."""
    assert verdict(goals(failing(result, **BUSY))) == "not measurable"
    assert shortfalls(result) == []
    (missed,) = unmeasured(result)
    assert missed.startswith("lambda-pg with 500 environments: no request fails: 1 of 500 failed")
    assert "other programs used 50% of the processors" in missed
    assert "environments waited 9.0 s of 20 s for a processor" in missed
    assert "raw psycopg needed 0.5 s for 50 requests" in missed
    assert conclude(shortfalls(result), unmeasured(result)) == NOT_MEASURABLE == 3


def test_a_layer_that_hangs_has_failed_on_a_busy_machine_too(result: dict[str, Any]) -> None:
    """Its environments sleep: they are not ready to run, so they do not wait for a processor."""
    waits = {"environment": 1.0, "server": 2.0}
    assert verdict(goals(failing(result, **{**BUSY, "waits": waits}))) == "failed"


def test_a_layer_that_burns_the_processor_has_failed(result: dict[str, Any]) -> None:
    """Its environments wait for each other; there is no other program."""
    waits = {"environment": 18.0, "server": 20.0}
    assert verdict(goals(failing(result, **{**QUIET, "waits": waits}))) == "failed"


def test_a_broken_promise_beside_an_unmeasured_one_is_a_failed_run(result: dict[str, Any]) -> None:
    """A busy machine does not excuse a broken limit."""
    failing(result, **BUSY)["rows"][-1]["peak_server_connections"] = 99
    assert verdict(goals(result)) == "failed"
    assert conclude(shortfalls(result), unmeasured(result)) == 1


@pytest.mark.parametrize(
    ("part", "calibration", "why"),
    [
        ({}, {}, "environments waited 9.0 s"),
        ({"waits": {"environment": 1.0, "server": 10.0}}, {}, "a server waited 10.0 s"),
        ({"waits": {"environment": None, "server": 0.0}}, {}, "no environment is left"),
        ({"others": 0.0}, {"needed": 20.1}, "environments waited 9.0 s"),
        ({"others": 0.24}, {"needed": 20.0}, ""),
        ({"waits": {"environment": 6.0, "server": 9.0}}, {}, ""),
    ],
)
def test_the_evidence_of_too_little_processor_time(
    part: dict[str, Any], calibration: dict[str, Any], why: str
) -> None:
    """A busy or a slow machine, and a process that waited for a third of the time."""
    found = without_a_processor(BUSY | part, CALIBRATION | calibration)
    assert (why in found) if why else found == ""


def test_ratios_of_rows_that_had_no_processor_are_not_measurable(result: dict[str, Any]) -> None:
    """They follow from requests that timed out."""
    failing(result, p99_ms=20_000.0, **BUSY)
    assert verdict(goals(result)) == "not measurable"
    assert len(unmeasured(result)) == 2
    named(result, "lambda-pg").update(failed=0)
    assert verdict(goals(result)) == "failed"


def test_the_last_line_of_the_demo_is_the_verdict(
    result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """And it has its exit code."""
    found = concluded(failing(result, **BUSY))
    assert demo.conclude_demo(found, 61.0) == 3
    (last,) = capsys.readouterr().out.splitlines()
    assert last == "Not measurable here: failed requests got too little processor time, in 61 s."


# Costs


@pytest.mark.parametrize(
    ("name", "environments", "changed", "complaint"),
    [
        ("lambda-pg", 500, {"p50_ms": 711.0}, "p50 of first requests is at most 0.7 of raw"),
        ("lambda-pg", 500, {"p99_ms": 811.0}, "p99 of first requests is at most 0.8 of raw"),
        ("lambda-pg", 1000, {"p99_ms": 1790.0}, "p99 with 1000 environments is at most 2.2 times"),
        ("connect-through-pooler", 500, {"failed": 1}, "no request fails: 1 of 500"),
    ],
)
def test_a_request_that_costs_too_much_is_named(
    result: dict[str, Any], name: str, environments: int, changed: dict[str, Any], complaint: str
) -> None:
    """Compared with the raw row, which must be a fair one, and with half of the environments."""
    named(result, name, environments).update(changed)
    (broken,) = shortfalls(result)
    assert complaint in broken


def test_ratios_are_of_the_medians_of_all_runs(result: dict[str, Any]) -> None:
    """Not of the run whose median is shown."""
    runs = [{"p50_ms": p50, "p99_ms": 10 * p50, "failed": 0} for p50 in (900.0, 100.0, 500.0)]
    named(result, "lambda-pg").update(runs=runs)
    assert ratios(result["rows"]) == {
        "p50_ms_to_raw": 0.5,
        "p99_ms_to_raw": 5.0,
        "p99_of_1000_to_500": 0.352,
    }
    assert ratios(result["rows"][:1]) == {}


def test_causes_of_failures_come_from_what_is_logged_meanwhile(tmp_path: Path) -> None:
    """A line counts once, the rest is unexplained, and a log that does not fit is not used."""
    path = tmp_path / "fn.log"
    path.write_text("old: sorry, too many clients already\n")
    outcomes = [Outcome(200, 1.0, "")] + [Outcome(500, 1.0, "500 error")] * 4
    summary = summarise(outcomes, 1.0)
    log = FunctionLog(path)
    assert log.causes(summary) == {"500 error": 4}
    line = "FATAL: sorry, too many clients already; connection timeout expired\n"
    with path.open("a") as file:
        file.write(f"{line}{line}FATAL: query_wait_timeout\nno cause\n")
    assert log.causes(summary) == {
        "sorry, too many clients already": 2,
        "query_wait_timeout": 1,
        "not explained in the log": 1,
    }
    with path.open("a") as file:
        file.write(line * 2)
    assert log.causes(summary) == {"500 error": 4}


def test_answers_between_two_looks_are_counted_by_status() -> None:
    """Earlier answers do not count."""
    before, after = {"200": 5, "503": 1}, {"200": 9, "503": 1, "500": 2}
    assert answered_between({"requests": before}, {"requests": after}) == {"200": 4, "500": 2}


def test_outcomes_of_the_second_driver_are_read_as_ours() -> None:
    """Anything but 200 has failed, and no answer is status 0."""
    served, refused, lost = outcomes_of([(200, 1500.0), (503, 20.0), (0, 60_000.0)])
    assert (served.served, served.seconds) == (True, 1.5)
    assert (refused.cause, lost.cause) == ("503", "0")
    assert not refused.served
    assert not lost.served


# Runs


def test_of_several_runs_the_middle_one_is_shown_with_the_peaks_of_all() -> None:
    """And the summaries of all runs are kept."""
    runs = [run_of(p50, peak) for p50, peak in ((9.0, 20), (4.0, 7), (6.0, 9))]
    shown = median_run(runs)
    assert (shown.p50_ms, shown.peak_server_connections) == (6.0, 20)
    assert [run.p50_ms for run in shown.runs] == [9.0, 4.0, 6.0]


def test_a_failure_in_any_run_breaks_the_promise(result: dict[str, Any]) -> None:
    """Not only one in the run that is shown."""
    row = named(result, "lambda-pg")
    row["runs"] = [{**row, "failed": failed} for failed in (0, 1, 0)]
    (broken,) = shortfalls(result)
    assert broken.startswith("lambda-pg with 500 environments: no request fails")


def test_the_order_of_rows_changes() -> None:
    """No row always comes first."""
    order: list[str] = []

    class Order(Stage):
        def storm(self, row: Row, driver: Driver = our_driver) -> Result:
            assert driver is our_driver
            order.append(row.name)
            return run_of(1.0, 1)

    Order(LocalCloud(), "", "", print).interleaved([Row("a", "a", 1), Row("b", "b", 1)], 3)
    assert order == ["a", "b", "b", "a", "a", "b"]


def run_of(p50: float, peak: int) -> Result:
    """Make one run of a row."""
    outcomes = [Outcome(200, p50 / 1000, "")] * 2
    seen = Observed(peak, [peak])
    return Result(
        **asdict(summarise(outcomes, 1.0)),
        name="lambda-pg",
        environments=2,
        start="restored",
        max_connections=100,
        budget=20,
        peak_server_connections=peak,
        server=seen,
        cpu=CpuSeconds(**CPU),
        waits=Waits(environment=p50, server=0.0),
        others=0.0,
        seconds=p50,
        answered={"200": 2},
    )


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [({"failed": 1}, "no second request fails: 1 of 500"), ({"p50_ms": 501.0}, "at most 0.5 of")],
)
def test_second_requests_have_promises_of_their_own(
    result: dict[str, Any], changed: dict[str, Any], complaint: str
) -> None:
    """None may fail, and a kept connection must be faster."""
    named(result, "lambda-pg")["again"] |= changed
    (broken,) = shortfalls(result)
    assert complaint in broken
