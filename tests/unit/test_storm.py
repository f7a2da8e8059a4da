"""What the storm plans, draws, adds up and promises, on results of the test's own."""

import asyncio
import copy
import itertools
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from benchmarks.load import Outcome, summarise
from benchmarks.storm import open_loop, sampler
from benchmarks.storm.accounting import CpuSeconds
from benchmarks.storm.goals import goals, shortfalls
from benchmarks.storm.rows import (
    Driver,
    FunctionLog,
    Result,
    Row,
    Stage,
    answered_between,
    median_run,
    our_driver,
)
from benchmarks.storm.run import COMPARED, CONTROLS, HOME, OTHER_SIZES, PEERS, peers, planned
from benchmarks.storm.second_driver import outcomes_of
from benchmarks.tables import STORM_TITLES, whole_storm_table
from local.cloud import LocalCloud
from stacks.assets import FUNCTIONS

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
    """In a folder of its own, of the benchmarks or of the project."""
    for row in CONTROLS + COMPARED + OTHER_SIZES:
        assert any((home / row.function / "handler.py").exists() for home in (HOME, FUNCTIONS))


def test_peers_are_named_with_the_versions_that_are_deployed() -> None:
    """Those that the functions' lock files pin, not what this environment happens to have."""
    for function, (name, version) in zip(PEERS, peers().items(), strict=True):
        assert f"\n{name}=={version} " in (HOME / function / "requirements.txt").read_text()


# Goals


def row_of(plan: dict[str, Any]) -> dict[str, Any]:
    """Make a row of the result that keeps every promise."""
    count = plan["environments"]
    failed = {"baseline": count // 2, "cached-direct": count // 5}.get(plan["name"], 0)
    budget = 20 if plan["max_connections"] == 100 else 4
    times = {f"{name}_ms": 1000.0 for name in ("p50", "p95", "p99", "max")}
    return {
        **plan,
        **times,
        "requests": count,
        "served": count - failed,
        "failed": failed,
        "failures": {},
        "budget": budget,
        "throughput_rps": 50.0,
        "cpu": {"functions": 6.0, "pgbouncer": 2.0, "postgresql": 0.2},
        "peak_server_connections": budget,
        "peak_client_connections": count,
        "runs": [],
        "again": again(plan),
        "widest_gap_ms": 50.0,
    }


def again(plan: dict[str, Any]) -> dict[str, Any] | None:
    """Make the second requests, where there were any."""
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
        "widest_gap_ms": 24.0,
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
    """A result in which everything held, by a hair."""
    return copy.deepcopy(
        {
            "max_connections": 100,
            "budget": 20,
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


def test_a_result_that_keeps_every_promise_is_a_passed_run(result: dict[str, Any]) -> None:
    """Silence means that everything held; each goal has its numbers."""
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
    """A control that does not fail is as bad as a failure of ours."""
    named(result, name, environments).update(changed)
    (broken,) = shortfalls(result)
    assert broken.startswith(f"{name} with {environments} environments: ")
    assert complaint in broken


def test_the_small_server_has_a_budget_of_its_own(result: dict[str, Any]) -> None:
    """What the other one may have is too much for it."""
    small = next(row for row in result["rows"] if row["max_connections"] == 25)
    small["peak_server_connections"] = 5
    (broken,) = shortfalls(result)
    assert broken.startswith("lambda-pg with 500 environments at max_connections 25: ")


def test_what_others_do_is_no_promise_of_ours(result: dict[str, Any]) -> None:
    """Peers are shown as they are."""
    named(result, "psycopg_pool").update(failed=7, peak_server_connections=80)
    assert shortfalls(result) == []


@pytest.mark.parametrize(
    ("environments", "changed", "complaint"),
    [
        (500, {"p50_ms": 9.1}, "p50 with 500 environments is at most 1.5 times"),
        (1000, {"failed": 1}, "open loop with 1000 environments: no request fails"),
        (50, {"environments_at_end": 51}, "open loop with 50 environments: the fleet stays"),
        (50, {"rate": 379.0}, "open loop with 50 environments: what arrives is answered"),
    ],
)
def test_an_open_loop_that_breaks_a_promise_is_named(
    result: dict[str, Any], environments: int, changed: dict[str, Any], complaint: str
) -> None:
    """A fleet that grows may not cost more, and has to keep up."""
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
    assert broken.startswith(f"baseline from {driver}: served and failed are exactly the API's")


def test_drivers_that_differ_are_named(result: dict[str, Any]) -> None:
    """In what was served, and in the median by more than a quarter."""
    lambda_pg = result["second_driver"]["rows"][0]
    lambda_pg["locust"] = {**lambda_pg["locust"], "served": 499, "p50_ms": 6251.0}
    first, second = shortfalls(result)
    assert "both drivers agree on served and failed" in first
    assert "the drivers' p50 are within 25%" in second


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
        "method": "m",
    }
    table = whole_storm_table(result | origin)
    assert {row["name"] for row in result["rows"]} <= set(STORM_TITLES)
    assert table.count(" restored |") == len(result["rows"]) - 1
    assert table.count(" cold |") == table.count("`max_connections` 25 |") == 1


# Open loop


@contextmanager
def served(handler: Callable[[web.BaseRequest], Awaitable[web.Response]]) -> Iterator[str]:
    """Serve a handler from a thread of its own."""
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
    """Time counts for who has to wait: for a server that stands still, and to be sent at all."""

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
    """Those that wait are timed all the same."""
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
    assert len(outcomes) % 3 == 0
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
        peak_client_connections=environments,
        widest_gap_ms=20.0 + number,
    )


def test_a_size_is_the_median_of_its_rounds_and_keeps_every_failure() -> None:
    """One disturbed round is not what is reported; a failure and a peak in it are."""
    measures = [measure(50, 1, 10.0), measure(50, 2, 11.0, failed=3), measure(50, 3, 90.0)]
    found = open_loop.of_size(50, [*measures, measure(500, 1, 99.0)])
    assert (found["p50_ms"], found["p95_ms"], found["max_ms"]) == (11.0, 22.0, 44.0)
    assert (found["requests"], found["failed"], found["rate"]) == (300, 3, 12.0)
    assert found["cpu_ms"] == {"postgresql": 1.1, "functions": 2.2}
    assert (found["peak_server_connections"], found["widest_gap_ms"]) == (3, 23.0)
    assert found["environments_at_end"] == 53


def test_growth_relates_every_size_to_the_smallest() -> None:
    """In latency and in processor time."""
    sizes = [open_loop.of_size(n, [measure(n, 1, p50)]) for n, p50 in ((50, 10.0), (500, 12.0))]
    assert open_loop.growth(sizes) == [
        {"environments": 50, "p50": 1.0, "p99": 1.0, "cpu": 1.0},
        {"environments": 500, "p50": 1.2, "p99": 1.2, "cpu": 1.2},
    ]


# Sampler and counts


def test_samples_become_the_peak_of_each_period() -> None:
    """A peak between two lower samples is kept, a moment without a sample is 0."""
    found = sampler.observe([(10.01, 3), (10.05, 9), (10.09, 4), (10.25, 5)], 10.0, 10.3)
    assert asdict(found) == {"peak": 9, "series": [9, 0, 5, 0]}


def test_the_widest_gap_counts_the_edges() -> None:
    """A sampler that begins late or ends early has missed something."""
    assert sampler.widest_gap([10.1, 10.2, 10.5], 10.0, 10.6) == pytest.approx(0.3)
    assert sampler.widest_gap([10.1, 10.2], 10.0, 10.6) == pytest.approx(0.4)
    assert sampler.widest_gap([], 10.0, 10.6) == pytest.approx(0.6)


def test_the_kernel_counts_connections_at_a_port_of_chosen_addresses() -> None:
    """A listening socket is none, nor is one to another address; one that has closed is gone."""
    with socket.create_server(("127.0.0.2", 0)) as server:
        port = server.getsockname()[1]
        assert sampler.established(["127.0.0.2"], port) == 0
        clients = [socket.create_connection(("127.0.0.2", port)) for _ in range(40)]
        assert sampler.established(["127.0.0.2", "127.0.0.3"], port) == 40
        assert sampler.established(["127.0.0.3"], port) == 0
        for client in clients:
            client.close()
        assert sampler.established(["127.0.0.2"], port) == 0


def test_causes_of_failures_come_from_what_is_logged_meanwhile(tmp_path: Path) -> None:
    """A line counts once, the rest is unexplained, and a log that does not fit explains nothing."""
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
    """What was there before is not counted again."""
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
    """And what every run came to is kept."""
    runs = [run_of(p50, peak) for p50, peak in ((9.0, 20), (4.0, 7), (6.0, 9))]
    shown = median_run(runs)
    assert (shown.p50_ms, shown.peak_server_connections) == (6.0, 20)
    assert [run.p50_ms for run in shown.runs] == [9.0, 4.0, 6.0]


def test_a_failure_in_any_run_breaks_the_promise(result: dict[str, Any]) -> None:
    """Not only one in the run that is shown."""
    row = named(result, "lambda-pg")
    row["runs"] = [{"failed": 0}, {"failed": 1}, {"failed": 0}]
    (broken,) = shortfalls(result)
    assert broken.startswith("lambda-pg with 500 environments: no request fails")


def test_ways_take_turns() -> None:
    """None always comes first."""
    order: list[str] = []

    class Order(Stage):
        def storm(self, row: Row, driver: Driver = our_driver) -> Result:
            assert driver is our_driver
            order.append(row.name)
            return run_of(1.0, 1)

    Order(LocalCloud(), "", "", print).by_turns([Row("a", "a", 1), Row("b", "b", 1)], 3)
    assert order == ["a", "b", "b", "a", "a", "b"]


def run_of(p50: float, peak: int) -> Result:
    """Make one run of a row."""
    outcomes = [Outcome(200, p50 / 1000, "")] * 2
    seen = sampler.Observed(peak, [peak])
    cpu = CpuSeconds(postgresql=1.0, pgbouncer=1.0, functions=1.0)
    return Result(
        **asdict(summarise(outcomes, 1.0)),
        name="lambda-pg",
        environments=2,
        start="restored",
        max_connections=100,
        budget=20,
        peak_server_connections=peak,
        peak_client_connections=2,
        samples=1,
        widest_gap_ms=20.0,
        server=seen,
        client=seen,
        cpu=cpu,
        answered={"200": 2},
    )


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [({"failed": 1}, "no second request fails: 1 of 500"), ({"p50_ms": 501.0}, "at most 0.5 of")],
)
def test_second_requests_have_promises_of_their_own(
    result: dict[str, Any], changed: dict[str, Any], complaint: str
) -> None:
    """None fails, and a kept connection shows."""
    named(result, "lambda-pg")["again"] |= changed
    (broken,) = shortfalls(result)
    assert complaint in broken
