"""The storm, as `make demo` and `make storm` run it."""

from benchmarks.goals import shortfalls
from benchmarks.storm import plan, run
from local.cloud import LocalCloud


def test_500_environments_are_served_where_the_baseline_fails(cloud: LocalCloud) -> None:
    """0 of 500 fail through layer and pooler, within the budget; the baseline loses half."""
    result = run(cloud, plan(environments=500, cold=10), print, command="make test")
    assert not shortfalls(result)
    assert [row["requests"] for row in result["rows"]] == [500, 500, 10]


def test_a_baseline_that_does_not_fail_fails_the_run() -> None:
    """The control has to lose, or the run proves nothing."""
    row = {
        "name": "baseline",
        "requests": 500,
        "failed": 249,
        "failures": {},
        "peak_server_connections": 97,
    }
    good = {**row, "name": "lambda-pg", "failed": 0, "peak_server_connections": 20}
    assert not shortfalls({"budget": 20, "rows": [{**row, "failed": 250}, good]})
    assert "the baseline failed only 249" in shortfalls({"budget": 20, "rows": [row, good]})[0]


def test_a_failure_or_a_peak_above_the_budget_fails_the_run() -> None:
    """One request, or one server connection, is enough."""
    row = {"name": "lambda-pg", "requests": 500, "failures": {"x": 1}}
    over = {**row, "failed": 0, "peak_server_connections": 21}
    failed = {**row, "failed": 1, "peak_server_connections": 20}
    assert len(shortfalls({"budget": 20, "rows": [over, failed]})) == 2
