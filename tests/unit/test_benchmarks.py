"""The arithmetic of the benchmarks, and the check that keeps the README honest."""

import copy
import json
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import pytest

from benchmarks import plots, tables
from benchmarks.cost import cold_start, first_request, logins, overhead, ratios, whole_request
from benchmarks.cost.secrets_service import GET, answer
from benchmarks.report import PARTS, PICTURES, RESULTS, between
from benchmarks.tables import OVERHEAD_TITLES, overhead_table
from lambda_pg_cdk.local.http.load import Outcome, summarise

MARKS = ("<!-- begin -->", "<!-- end -->")
ORIGIN = {
    "machine": {"cores": 2, "processor": "a processor"},
    "versions": {"postgresql": "17.1", "pgbouncer": "1.24.1", "python": "3.11.2"},
    "date": "2026-01-02T03:04:05+00:00",
    "command": "make bench",
    "caveats": ["one", "two"],
}


def test_a_summary_counts_every_request() -> None:
    """Served and failed add up, causes are counted, and failures have latencies too."""
    outcomes = [Outcome(200, 0.1 * n, "") for n in range(1, 9)]
    outcomes += [Outcome(503, 2.0, "503 busy"), Outcome(0, 3.0, "TimeoutError")]
    summary = summarise(outcomes, seconds=4.0)
    assert (summary.requests, summary.served, summary.failed) == (10, 8, 2)
    assert summary.failures == {"503 busy": 1, "TimeoutError": 1}
    assert summary.max_ms == 3000
    assert summary.p50_ms == pytest.approx(550)
    assert summary.throughput_rps == 2.0


def test_a_ratio_compares_within_a_round() -> None:
    """A machine that slows down for a while slows both, and changes no ratio."""
    base = [10.0, 30.0, 10.0, 50.0, 10.0]
    assert ratios.paired_ratio([time * 1.1 for time in base], base) == pytest.approx(1.1)
    with pytest.raises(ValueError, match="longer"):
        ratios.paired_ratio(base[1:], base)


def test_a_row_is_the_median_run_and_keeps_all() -> None:
    """One disturbed run of five is not what is reported, nor is it left out."""
    factors = (1.05, 1.07, 1.06, 1.9, 1.04)
    runs = [{"raw": [10.0, 10.0, 10.0], "layer": [10 * factor] * 3} for factor in factors]
    raw, layer = ratios.rows("raw", runs, "us")
    assert (raw["ratio"], raw["median_us"]) == (1.0, 10.0)
    assert layer == {
        "name": "layer",
        "median_us": 10.6,
        "ratio": 1.06,
        "ratios": list(factors),
    }


def test_a_busy_machine_shows() -> None:
    """Rounds that are mostly far above the quiet ones are told from an even run."""
    assert ratios.unrest([10.0] * 10) == 1
    assert ratios.unrest([10.0] * 3 + [40.0] * 7) > overhead.UNREST


def overhead_result(**found: float) -> dict[str, Any]:
    """Make a result of five runs on both paths, with ratios that meet every goal but for these."""
    wanted = {
        "raw": 1.0,
        "raw again": 1.001,
        "lambda-pg": 1.02,
        "lambda-pg traced": 1.5,
        "psycopg_pool": 2.2,
    } | found
    run: ratios.Rounds = {name: [50 * ratio] * 3 for name, ratio in wanted.items()}
    runs = [run] * 5
    return ORIGIN | {"runs": 5} | overhead.result_of({"direct": runs, "pgbouncer": runs})


def test_a_result_within_its_goals_breaks_no_promise() -> None:
    """Silence means that everything held."""
    assert overhead.shortfalls(overhead_result()) == []


@pytest.mark.parametrize(
    ("name", "ratio", "complaint"),
    [
        ("lambda-pg", 1.09, "direct: lambda-pg took 1.09 times raw, not 1.08"),
        ("lambda-pg", 1.04, "pgbouncer: lambda-pg took 1.04 times raw, not 1.03"),
        ("psycopg_pool", 1.2, "direct: psycopg_pool took only 1.2 times raw"),
        ("lambda-pg traced", 1.05, "direct: lambda-pg traced took only 1.029 times lambda-pg"),
        ("raw again", 1.05, "direct: raw took 1.05 times raw: the machine is too noisy"),
    ],
)
def test_a_broken_promise_is_named(name: str, ratio: float, complaint: str) -> None:
    """Too slow, a control that does not lose, and a base that differs from itself all fail."""
    broken = overhead.shortfalls(overhead_result(**{name: ratio}))
    assert any(promise.startswith(complaint) for promise in broken)


def test_one_bad_run_breaks_the_ceiling() -> None:
    """The median alone does not say that a run was never above the ceiling."""
    result = overhead_result()
    next(row for row in result["rows"] if row["name"] == "lambda-pg")["ratios"][0] = 1.2
    assert overhead.shortfalls(result) == [
        "direct: a run of lambda-pg took 1.2 times raw, above 1.1"
    ]


def test_a_result_from_a_busy_machine_is_refused() -> None:
    """What takes long for everyone makes ratios look small."""
    result = overhead_result()
    result["unrest"]["pgbouncer"] = 3.0
    assert "something else uses this machine" in overhead.shortfalls(result)[0]


COLD: dict[str, Any] = {
    "goal": cold_start.GOAL,
    "secrets_service_ms": 0.3,
    "unrest": 1.02,
    "rows": [
        {"name": "floor", "ratio": 1.0},
        {"name": "lambda-pg", "ratio": 0.85},
        {"name": "boto3+psycopg_pool", "ratio": 2.2},
    ],
}


def test_a_cold_start_within_its_goal_breaks_no_promise() -> None:
    """Silence means that everything held."""
    assert cold_start.shortfalls(COLD) == []


@pytest.mark.parametrize(
    ("row", "ratio", "complaint"),
    [(1, 0.89, "lambda-pg took 0.89 times the floor"), (2, 1.2, "proves nothing")],
)
def test_a_slow_cold_start_is_named(row: int, ratio: float, complaint: str) -> None:
    """Above the goal, or with a control that does not lose, the run fails."""
    result = copy.deepcopy(COLD)
    result["rows"][row]["ratio"] = ratio
    assert complaint in cold_start.shortfalls(result)[0]


def test_a_slow_secrets_service_is_named() -> None:
    """It would be what is measured, on both sides of the ratio."""
    assert (
        "the secrets service took 9 ms"
        in cold_start.shortfalls(COLD | {"secrets_service_ms": 9})[0]
    )


FIRST: dict[str, Any] = {
    "goal": first_request.GOAL,
    "rows": [
        {"name": "raw again", "ratio": 1.01},
        {"name": "lambda-pg", "ratio": 0.97},
        {"name": "psycopg_pool", "ratio": 1.2},
    ],
}


def test_a_first_request_within_its_goal_breaks_no_promise() -> None:
    """Silence means that everything held."""
    assert first_request.shortfalls(FIRST) == []


@pytest.mark.parametrize(
    ("row", "ratio", "complaint"),
    [
        (0, 1.04, "the machine is too noisy"),
        (1, 1.01, "lambda-pg took 1.01 times raw, not 1.0"),
        (2, 1.05, "proves nothing"),
    ],
)
def test_a_costly_first_request_is_named(row: int, ratio: float, complaint: str) -> None:
    """Above the goal, with a control that does not lose, or with noise, the run fails."""
    result = copy.deepcopy(FIRST)
    result["rows"][row]["ratio"] = ratio
    assert complaint in first_request.shortfalls(result)[0]


LOGINS: dict[str, Any] = {
    "rows": [
        {"whose": "pooler", "name": "1 round", "ratio": 0.26},
        {"whose": "client", "name": "1 round", "ratio": 0.5},
        {"whose": "client", "name": "PgBouncer 1.24.1", "ratio": 1.0},
    ]
}


@pytest.mark.parametrize(
    ("row", "ratio", "complaint"),
    [
        (0, 0.31, "the pooler's part of a login took 0.31 of that of PgBouncer 1.24.1, not 0.3"),
        (1, 0.56, "the client's part of a login took 0.56 of that of 4,096 rounds, not 0.55"),
        (2, 0.5, "proves nothing"),
    ],
)
def test_a_costly_login_is_named(row: int, ratio: float, complaint: str) -> None:
    """Above a goal, or with a control that does not lose, the run fails."""
    assert logins.shortfalls(LOGINS) == []
    result = copy.deepcopy(LOGINS)
    result["rows"][row]["ratio"] = ratio
    assert complaint in logins.shortfalls(result)[0]


@pytest.mark.parametrize(
    ("whole", "simulator", "broken"), [(0.5, 0.44, 0), (0.51, 0.44, 1), (0.5, 0.45, 1)]
)
def test_a_first_request_that_costs_too_much_as_a_whole_is_named(
    whole: float, simulator: float, broken: int
) -> None:
    """Where the older version cannot be measured there is no row, and nothing to break."""
    rows = [
        {"part": part, "name": name, "ratio": ratio}
        for part, found in (("whole", whole), ("simulator", simulator))
        for name, ratio in (("before", 1.0), ("now", found))
    ]
    assert whole_request.shortfalls({"goals": whole_request.GOALS, "rows": []}) == []
    assert len(whole_request.shortfalls({"goals": whole_request.GOALS, "rows": rows})) == broken


def test_the_secrets_service_answers_as_the_real_one() -> None:
    """The current version of what is there, as JSON text, and an error for anything else."""
    secrets = {"arn:one": {"username": "ada"}}
    status, document = answer(secrets, GET, b'{"SecretId": "arn:one"}')
    assert (status, json.loads(document["SecretString"])) == (HTTPStatus.OK, {"username": "ada"})
    for target, body in [
        (GET, b'{"SecretId": "arn:two"}'),
        (GET, b'{"SecretId": "arn:one", "VersionStage": "AWSPREVIOUS"}'),
        ("secretsmanager.DeleteSecret", b'{"SecretId": "arn:one"}'),
    ]:
        status, document = answer(secrets, target, body)
        assert (status, document["__type"]) == (400, "ResourceNotFoundException")


def committed(name: str) -> dict[str, Any]:
    """Read a committed result."""
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return result


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("storm", tables.whole_storm_table),
        ("chaos", tables.chaos_table),
        ("cold_start", tables.cold_start_table),
    ],
)
def test_the_table_shows_every_row_of_the_committed_result(
    name: str, draw: Callable[[dict[str, Any]], str]
) -> None:
    """No row is left out, whatever it looks like."""
    result = committed(name)
    assert draw(result).count("\n| ") == len(result["rows"])


def test_the_first_table_shows_every_way_to_connect() -> None:
    """Each is there with the same number of environments; lambda-pg with the most of all, too."""
    result = committed("storm")
    table = tables.storm_table(result)
    for row in result["rows"]:
        served = f"| {row['environments']} {row['start']} | {row['served']} of {row['requests']} |"
        title = tables.STORM_TITLES[row["name"]]
        assert row["name"].startswith("lambda-pg") or f"| {title} {served}" in table
    assert "| 1000 restored | 1000 of 1000 | 0 |" in table


def test_the_lookups_that_are_shown_were_all_measured() -> None:
    """A committed result holds every row of the table on both paths: no cell is empty."""
    result = committed("overhead")
    names, table = [row["name"] for row in result["rows"]], overhead_table(result)
    assert all(names.count(name) == 2 for name in OVERHEAD_TITLES)
    assert table.count("\n| ") == len(OVERHEAD_TITLES)
    assert "|  |" not in table


def test_both_paths_of_a_lookup_share_a_line() -> None:
    """Direct comes first, and a path that was not measured leaves its cells empty."""
    result = overhead_result()
    assert "| **lambda-pg**, with the invocation's deadline | 51.0 | 1.02 | 51.0 | 1.02 |" in (
        overhead_table(result)
    )
    result["rows"] = [row for row in result["rows"] if row["path"] == "pgbouncer"]
    assert "| **lambda-pg**, with the invocation's deadline |  |  | 51.0 | 1.02 |" in (
        overhead_table(result)
    )


def test_a_number_typed_by_hand_is_noticed() -> None:
    """The check compares the README with what the results make of it."""
    readme = f"intro\n{MARKS[0]}\n| typed by hand |\n{MARKS[1]}\nrest"
    made = between(readme, MARKS, "| measured |")
    assert made == f"intro\n{MARKS[0]}\n| measured |\n{MARKS[1]}\nrest"
    assert made != readme


def test_every_part_has_its_place() -> None:
    """A document without a part's marks is an error, not a table left out."""
    for part in PARTS:
        assert all(mark in part.document.read_text() for mark in part.marks)
    with pytest.raises(SystemExit, match="no place"):
        between("no marks", MARKS, "| measured |")


def test_a_picture_is_the_same_whenever_it_is_drawn() -> None:
    """So a check can tell whether it shows what was measured."""
    result = committed("storm")
    first = plots.storm_plot(result)
    assert first == plots.storm_plot(result)
    assert first == (RESULTS / "storm.svg").read_text()
    result["rows"][0]["served"] -= 1
    assert first != plots.storm_plot(result)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_asks_nobody_for_anything(name: str) -> None:
    """It has its letters with it, and no address but those of its own format."""
    picture = (RESULTS / name).read_text()
    assert "<text" not in picture
    assert set(re.findall(r"https?://([^/\"]+)", picture)) == {"www.w3.org"}
