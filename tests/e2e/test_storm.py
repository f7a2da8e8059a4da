"""The storm, as `make demo` and `make storm` run it."""

from dataclasses import replace

import pytest

from benchmarks.storm import second_driver
from benchmarks.storm.goals import shortfalls
from benchmarks.storm.rows import Driver, Row, our_driver
from benchmarks.storm.run import plan, run, set_up
from local.cloud import LocalCloud


def test_500_environments_are_served_where_the_baseline_fails(cloud: LocalCloud) -> None:
    """0 of 500 fail through layer and pooler, within the budget; the baseline loses half."""
    result = run(cloud, plan(environments=500, cold=10), print, command="make test")
    assert not shortfalls(result)
    assert [row["requests"] for row in result["rows"]] == [500, 500, 10]
    for row in result["rows"]:
        assert row["answered"]["200"] == row["served"]
        assert sum(row["answered"].values()) == row["requests"]
        assert min(row["cpu"]["postgresql"], row["cpu"]["functions"]) > 0
    assert result["rows"][1]["cpu"]["pgbouncer"] > 0.5  # 500 logins
    assert result["rows"][1]["peak_client_connections"] >= 500


@pytest.mark.parametrize("driver", [our_driver, second_driver.locust])
def test_both_drivers_count_what_the_api_counts(cloud: LocalCloud, driver: Driver) -> None:
    """Whether the API serves all requests or refuses all of them."""
    row = Row("lambda-pg", "users", 30, path="/users")
    stage = set_up(cloud, print)
    served = stage.storm(row, driver)
    refused = replace(stage, token="nobody's").storm(row, driver)
    assert (served.requests, served.served, served.answered) == (30, 30, {"200": 30})
    assert (refused.requests, refused.failed, refused.answered) == (30, 30, {"401": 30})
