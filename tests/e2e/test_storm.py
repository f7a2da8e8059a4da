"""The storm, as `make demo` and `make storm` run it."""

from benchmarks.goals import shortfalls
from benchmarks.storm import plan, run
from local.cloud import LocalCloud


def test_500_environments_are_served_where_the_baseline_fails(cloud: LocalCloud) -> None:
    """0 of 500 fail through layer and pooler, within the budget; the baseline loses half."""
    result = run(cloud, plan(environments=500, cold=10), print, command="make test")
    assert not shortfalls(result)
    assert [row["requests"] for row in result["rows"]] == [500, 500, 10]
    for row in result["rows"]:
        assert row["answered"]["200"] == row["served"]
        assert sum(row["answered"].values()) == row["requests"]
        assert min(row["cpu"].values()) > 0
    assert result["rows"][1]["peak_client_connections"] >= 500
