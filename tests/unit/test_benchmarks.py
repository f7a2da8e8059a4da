"""The arithmetic of the benchmarks, and the check that keeps the README honest."""

import ast
import copy
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any

import pytest

from benchmarks import plots, summary, tables
from benchmarks.cost import (
    cold_start,
    first_request,
    logins,
    mutations,
    one_key,
    overhead,
    ratios,
    sql,
    sql_request,
    whole_request,
)
from benchmarks.cost.secrets_service import GET, answer
from benchmarks.report import PARTS, PICTURES, README, RESULTS, between
from benchmarks.storm.accounting import MODULES
from benchmarks.tables import OVERHEAD_TITLES, one_key_table, overhead_table
from lambda_pg_cdk.local.http.load import Outcome, summarise

MARKS = ("<!-- begin -->", "<!-- end -->")
ORIGIN = {
    "machine": {"cores": 2, "processor": "a processor"},
    "versions": {"postgresql": "17.1", "pgbouncer": "1.24.1", "python": "3.11.2"},
    "date": "2026-01-02T03:04:05+00:00",
    "command": "make bench",
    "method": "How it is measured. All of it.",
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
    """One disturbed run of five is kept, but is not the row."""
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
    """Rounds that are mostly far above the quiet ones differ from an even run."""
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
    """No shortfall means that every promise was kept."""
    assert overhead.shortfalls(overhead_result()) == []


@pytest.mark.parametrize(
    ("name", "ratio", "complaint"),
    [
        ("lambda-pg", 1.09, "direct: lambda-pg took 1.09 times raw; the limit is 1.08"),
        ("lambda-pg", 1.04, "pgbouncer: lambda-pg took 1.04 times raw; the limit is 1.03"),
        ("psycopg_pool", 1.2, "direct: psycopg_pool took only 1.2 times raw"),
        ("lambda-pg traced", 1.05, "direct: lambda-pg traced took only 1.029 times lambda-pg"),
        ("raw again", 1.05, "direct: raw took 1.05 times raw: the machine is too noisy"),
    ],
)
def test_a_broken_promise_is_named(name: str, ratio: float, complaint: str) -> None:
    """A slow layer, a control that is not slower, and a noisy base all fail."""
    broken = overhead.shortfalls(overhead_result(**{name: ratio}))
    assert any(promise.startswith(complaint) for promise in broken)


def test_one_bad_run_breaks_the_ceiling() -> None:
    """The median can be below the ceiling although a run was above."""
    result = overhead_result()
    next(row for row in result["rows"] if row["name"] == "lambda-pg")["ratios"][0] = 1.2
    assert overhead.shortfalls(result) == [
        "direct: a run of lambda-pg took 1.2 times raw; the limit is 1.1"
    ]


def test_a_result_from_a_busy_machine_is_refused() -> None:
    """A busy machine makes ratios smaller."""
    result = overhead_result()
    result["unrest"]["pgbouncer"] = 3.0
    assert "another program uses this machine" in overhead.shortfalls(result)[0]


def sql_result(**changes: Any) -> dict[str, Any]:
    """Make a result of `POST /sql` that meets every goal, but for the ratios of some rows."""
    wanted = dict.fromkeys(sql.BASES.values(), 1.0) | dict.fromkeys(sql.GOALS["direct"], 1.4)
    wanted |= {sql.SAME: 1.0, sql.CONTROL: 9.0} | changes
    times = {name: [50 * each] * 3 for name, each in wanted.items()}
    run = {"times": times, "refused_bytes": 0, "accepted_bytes": 50_000_000}
    cold = {"ratio": 1.05, "sql_ms": 105, "health_ms": 100, "starts": 40}
    runs = [run] * 5
    found = sql.result_of({"direct": runs, "pgbouncer": runs})
    return ORIGIN | {"runs": 5, "cold_start": cold} | found


def test_a_result_of_sql_within_its_goals_breaks_no_promise() -> None:
    """No shortfall means that every promise was kept."""
    assert sql.shortfalls(sql_result()) == []


@pytest.mark.parametrize(
    ("name", "ratio", "complaint"),
    [
        ("lookup: POST /sql", 2.1, "pgbouncer: lookup: POST /sql took 2.1 times its base"),
        ("batch: POST /sql", 1.6, "direct: batch: POST /sql took 1.6 times its base"),
        ("rows: POST /sql", 2.1, "direct: rows: POST /sql took 2.1 times its base"),
        (sql.CONTROL, 2.0, f"direct: {sql.CONTROL} took only 2.0 times raw"),
        (sql.SAME, 1.05, "direct: raw took 1.05 times raw: the machine is too noisy"),
    ],
)
def test_a_broken_promise_of_sql_is_named(name: str, ratio: float, complaint: str) -> None:
    """A slow call, a control that is not slower, and a noisy base all fail."""
    broken = sql.shortfalls(sql_result(**{name: ratio}))
    assert any(promise.startswith(complaint) for promise in broken)


def test_memory_and_cold_start_of_sql_have_limits() -> None:
    """They are no rows, but are promised too."""
    result = sql_result()
    result["refused"]["direct"], result["cold_start"]["ratio"] = 4.5, 1.2
    result["unrest"]["pgbouncer"], result["accepted"]["pgbouncer"] = 2.0, 0.0
    assert [promise.partition(" took")[0] for promise in sql.shortfalls(result)] == [
        "direct: a refused result",
        "pgbouncer: raw",
        "pgbouncer: psycopg",
        "the cold start",
    ]


def sql_request_result(again: float) -> dict[str, Any]:
    """Make a result of both ways through the API, with a ratio of GET to itself."""
    times = {name: [2.0 * ratio] * 3 for name, ratio in REQUESTS.items()}
    times[sql_request.AGAIN] = [2.0 * again] * 3
    rows = ratios.rows(sql_request.USERS, [times], "ms")
    return ORIGIN | {"rows": rows}


def one_key_result(**changed: dict[str, Any]) -> dict[str, Any]:
    """Make a result that meets every goal, but for some rows."""
    p95 = {one_key.WITHOUT: 10, one_key.WITH: 14, one_key.AGAIN: 11, one_key.CONTROL: 900}
    found = {name: [one_key.Round(5, each, 2 * each, 99, 0)] for name, each in p95.items()}
    found |= {name: [replace(found[name][0], **change)] for name, change in changed.items()}
    return ORIGIN | {"rows": one_key.rows(found)}


def test_other_users_beside_fifty_with_one_key_are_shown() -> None:
    """With the ratio of the 95th percentiles, and what failed."""
    result = one_key_result()
    assert one_key.shortfalls(result) == []
    assert "| fifty with one key | 5.0 | 14.0 | 28.0 | 1.40 | 0 of 99 |" in one_key_table(result)


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        (one_key.WITH, {"p95": 16}, "with the fifty p95 is 1.6 times"),
        (one_key.WITH, {"failed": 2}, "fifty with one key: 2 requests of other users failed"),
        (one_key.AGAIN, {"p95": 13}, "without the fifty p95 is 1.3 times itself"),
        (one_key.CONTROL, {"p95": 40}, "the control's p95 is only 4.0 times"),
    ],
)
def test_a_broken_promise_to_other_users_is_named(
    name: str, change: dict[str, Any], complaint: str
) -> None:
    """They wait too long, or fail; or the run proves nothing."""
    (broken,) = one_key.shortfalls(one_key_result(**{name: change}))
    assert broken.startswith(complaint)


def test_the_ratio_to_other_users_is_the_median_of_pairs() -> None:
    """One disturbed round changes neither it nor the others."""
    found = {one_key.WITHOUT: [10, 10, 90], one_key.WITH: [12, 50, 99]}
    rows = one_key.rows({k: [one_key.Round(1, n, 1, 1, 0) for n in v] for k, v in found.items()})
    assert rows[1]["ratios"] == [1.2, 5.0, 1.1]
    assert rows[1]["ratio"] == 1.2


REQUESTS = {sql_request.USERS: 1.0, sql_request.SQL: 0.8}


def test_a_request_of_sql_is_shown_beside_one_of_users() -> None:
    """As milliseconds and as a ratio; a noisy machine makes the result worthless."""
    result = sql_request_result(again=1.01)
    assert sql_request.shortfalls(result) == []
    assert "| `POST /sql` | 1.60 | 0.80 |" in tables.sql_request_table(result)
    noisy = sql_request_result(again=1.2)
    assert "the machine is too noisy" in sql_request.shortfalls(noisy)[0]


def test_each_row_of_a_request_is_measured_in_every_round() -> None:
    """The first round warms up and does not count."""
    sent: list[str] = []
    requests = {name: partial(sent.append, name) for name in REQUESTS}
    times = sql_request.measure(requests, rounds=3, calls=2)
    assert {name: len(each) for name, each in times.items()} == dict.fromkeys(REQUESTS, 3)
    assert Counter(sent) == dict.fromkeys(REQUESTS, 4 * 2)


WRITES: dict[str, tuple[float, int]] = {
    "POST: before": (1.0, 1),
    mutations.SAME: (1.0, 1),
    "POST: plain": (1.0, 1),
    "POST: with a key": (1.7, 3),
    "PATCH: before": (1.0, 3),
    "PATCH: plain": (0.9, 2),
    "PATCH: with a key": (1.1, 3),
    "PATCH: with If-Match": (0.9, 2),
    mutations.WHOLE: (1.2, 4),
    mutations.CONTROL: (2.5, 7),
}
"""The ratio and the round trips of each row, within every goal."""


def mutations_result(**changes: tuple[float, int]) -> dict[str, Any]:
    """Make a result of the writes that meets every goal, but for some rows."""
    wanted = WRITES | changes
    times = {name: [50 * ratio] * 3 for name, (ratio, _) in wanted.items()}
    trips = {name: each for name, (_, each) in wanted.items()}
    paths = ("direct", "pgbouncer")
    runs = dict.fromkeys(paths, [times] * 5)
    return ORIGIN | {"runs": 5} | mutations.result_of(runs, dict.fromkeys(paths, trips))


def test_writes_within_their_goals_break_no_promise() -> None:
    """No shortfall means that every promise was kept."""
    result = mutations_result()
    assert mutations.shortfalls(result) == []
    drawn = tables.mutations_table(result)
    assert "| PATCH: with everything | 60.0 | 1.20 | 60.0 | 1.20 | 4 |" in drawn


@pytest.mark.parametrize(
    ("name", "found", "complaint"),
    [
        (mutations.WHOLE, (1.6, 4), "took 1.6 times PATCH before; the limit is 1.5"),
        (mutations.WHOLE, (1.2, 5), "took 5 round trips; the limit is 4"),
        ("POST: plain", (1.0, 2), "took 2 round trips; the limit is 1"),
        ("POST: with a key", (1.7, 4), "took 4 round trips; the limit is 3"),
        ("PATCH: plain", (0.9, 4), "took 4 round trips; the limit is 3"),
        ("PATCH: with If-Match", (0.9, 3), "took 3 round trips; the limit is 2"),
        (mutations.CONTROL, (1.3, 7), "a control that is not slower proves nothing"),
        (mutations.CONTROL, (2.5, 4), "a control within the limit proves nothing"),
        (mutations.SAME, (1.1, 1), "POST before took 1.1 times itself"),
    ],
)
def test_a_broken_promise_of_writes_is_named(
    name: str, found: tuple[float, int], complaint: str
) -> None:
    """A slow write, one round trip more, and a control or a base that proves nothing."""
    broken = mutations.shortfalls(mutations_result(**{name: found}))
    assert any(complaint in promise for promise in broken)


def test_a_busy_machine_makes_the_writes_worthless() -> None:
    """It makes ratios smaller."""
    result = mutations_result()
    result["unrest"]["direct"] = 3.0
    assert "another program uses this machine" in mutations.shortfalls(result)[0]


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
    """No shortfall means that every promise was kept."""
    assert cold_start.shortfalls(COLD) == []


@pytest.mark.parametrize(
    ("row", "ratio", "complaint"),
    [(1, 0.89, "lambda-pg took 0.89 times the floor"), (2, 1.2, "proves nothing")],
)
def test_a_slow_cold_start_is_named(row: int, ratio: float, complaint: str) -> None:
    """Above the goal, or with a control that is not slower, the run fails."""
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
    """No shortfall means that every promise was kept."""
    assert first_request.shortfalls(FIRST) == []


@pytest.mark.parametrize(
    ("row", "ratio", "complaint"),
    [
        (0, 1.04, "the machine is too noisy"),
        (
            1,
            1.01,
            "lambda-pg took 1.01 times as long as one through bare psycopg; the limit is 1.0",
        ),
        (2, 1.05, "proves nothing"),
    ],
)
def test_a_costly_first_request_is_named(row: int, ratio: float, complaint: str) -> None:
    """Above the goal, with a control that is not slower, or with noise, the run fails."""
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
        (0, 0.31, "took 0.31 of the pooler's time with PgBouncer 1.24.1; the limit is 0.3"),
        (1, 0.56, "took 0.56 of the client's time with 4,096 rounds; the limit is 0.55"),
        (2, 0.5, "proves nothing"),
    ],
)
def test_a_costly_login_is_named(row: int, ratio: float, complaint: str) -> None:
    """Above a goal, or with a control that is not slower, the run fails."""
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
    """If the older version cannot be measured, there is no row and no broken promise."""
    rows = [
        {"part": part, "name": name, "ratio": ratio}
        for part, found in (("whole", whole), ("simulator", simulator))
        for name, ratio in (("before", 1.0), ("now", found))
    ]
    assert whole_request.shortfalls({"goals": whole_request.GOALS, "rows": []}) == []
    assert len(whole_request.shortfalls({"goals": whole_request.GOALS, "rows": rows})) == broken


def older(path: str) -> str:
    """Read a file, or list a folder, of the version that a whole first request is compared with."""
    done = subprocess.run(
        ["git", "show", f"{whole_request.BASELINE}:{path}"],
        cwd=README.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if "invalid object name" in done.stderr:
        pytest.skip("this clone is shallow")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_storms_of_both_versions_run_in_the_older_checkout() -> None:
    """It has the imports of the program, and the modules that count as the simulator's."""
    imported = [
        node
        for node in ast.walk(ast.parse(whole_request.TURNS_PROGRAM.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module not in sys.stdlib_module_names
    ]
    modules = {node.module: {alias.name for alias in node.names} for node in imported}
    del modules["importlib.util"]
    for module, names in modules.items():
        source = ast.parse(older(f"{str(module).replace('.', '/')}.py"))
        assert names <= {getattr(node, "name", "") for node in source.body}, module
    named = {part for module, part in MODULES.items() if module.startswith("local.")}
    assert named == set(MODULES.values())
    assert "__main__.py" in older("local/control_plane")
    assert "balancer.py" in older("local/pooler_service")


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
        ("storm", tables.storm_table),
        ("storm", tables.storm_cost_table),
        ("chaos", tables.chaos_table),
        ("cold_start", tables.cold_start_table),
    ],
)
def test_the_table_shows_every_row_of_the_committed_result(
    name: str, draw: Callable[[dict[str, Any]], str]
) -> None:
    """No row is left out, whatever it looks like."""
    result = committed(name)
    assert draw(result).count("\n| ") == 1 + len(result["rows"])


def test_the_readme_shows_the_storm_in_three_rows() -> None:
    """Neither pooler nor layer, the pooler alone, and both, all with the same environments."""
    result = committed("storm")
    rows = {row["name"]: row for row in reversed(tables.compared(result))}
    _, _, *shown = summary.storm_summary(result).splitlines()
    assert len(shown) == len(summary.STORM_ROWS) == 3
    for line, name in zip(shown, summary.STORM_ROWS, strict=True):
        assert line.startswith(f"| {tables.STORM_TITLES[name]} | {rows[name]['served']} of 500 | ")
        assert line.endswith(f" | {rows[name]['peak_server_connections']} |")


def test_the_readme_states_what_faults_and_invocations_came_to() -> None:
    """One line for each, with the numbers of the committed results."""
    chaos = committed("chaos")
    faults, costs = summary.claims(
        chaos, committed("overhead"), committed("cold_start")
    ).splitlines()
    requests = sum(row["requests"] for row in chaos["rows"])
    assert f"{len(chaos['rows'])} fault scenarios, {requests:,} requests" in faults
    warm, cold = re.findall(r"\d\.\d\d", costs)
    assert 1 <= float(warm) < 1.2
    assert 0 < float(cold) < 1


def test_the_first_screen_of_the_readme_is_short() -> None:
    """A reader sees the claim, the commands, the code and the ways to install on two screens."""
    lines = README.read_text().splitlines()
    assert lines.index("## Requirements") <= 65
    assert max(len(line) for line in lines) <= 250, "a cell or line is too long to read"


def test_a_table_is_aligned_in_a_terminal() -> None:
    """Texts at the left, numbers at the right, and no marks for bold text and code."""
    drawn = tables.table(["way", "`ms`"], [["**ours**", 5], ["theirs", 1000]])
    assert tables.for_terminal(f"before\n\n{drawn}\n\n- a **note**") == (
        "before\n\nway       ms\n------  ----\nours       5\ntheirs  1000\n\n- a note"
    )


def test_the_lookups_that_are_shown_were_all_measured() -> None:
    """A committed result holds every row of the table on both paths: no cell is empty."""
    result = committed("overhead")
    names, table = [row["name"] for row in result["rows"]], overhead_table(result)
    assert all(names.count(name) == 2 for name in OVERHEAD_TITLES)
    assert table.count("\n| ") == 1 + len(OVERHEAD_TITLES)
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
    """The check compares the README with what the results give."""
    readme = f"intro\n{MARKS[0]}\n| typed by hand |\n{MARKS[1]}\nrest"
    made = between(readme, MARKS, "| measured |")
    assert made == f"intro\n{MARKS[0]}\n| measured |\n{MARKS[1]}\nrest"
    assert made != readme


def test_every_part_has_its_place() -> None:
    """A document that lacks the marks of a part is an error."""
    for part in PARTS:
        assert all(mark in part.document.read_text() for mark in part.marks)
    with pytest.raises(SystemExit, match="lacks the lines"):
        between("no marks", MARKS, "| measured |")


def test_a_picture_is_the_same_whenever_it_is_drawn() -> None:
    """So `--check` can compare it with what the results give."""
    result = committed("storm")
    first = plots.storm_plot(result)
    assert first == plots.storm_plot(result)
    assert first == (RESULTS / "storm.svg").read_text()
    result["rows"][0]["served"] -= 1
    assert first != plots.storm_plot(result)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_loads_nothing(name: str) -> None:
    """Letters are outlines, and the only address is that of the SVG format."""
    picture = (RESULTS / name).read_text()
    assert "<text" not in picture
    assert set(re.findall(r"https?://([^/\"]+)", picture)) == {"www.w3.org"}
