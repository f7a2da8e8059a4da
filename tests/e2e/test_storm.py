"""The storm, as `make demo` and `make storm` run it."""

from dataclasses import replace

import pytest

from benchmarks.storm import second_driver
from benchmarks.storm.goals import shortfalls, unmeasured
from benchmarks.storm.rows import Driver, Row, our_driver
from benchmarks.storm.run import plan, run, set_up
from lambda_pg_cdk.local.cloud import LocalCloud

pytestmark = pytest.mark.alone  # its limits come from a calibration of this machine


def test_500_environments_are_served_where_the_baseline_fails(cloud: LocalCloud) -> None:
    """0 of 500 fail through layer and pooler, within the budget; half of the baseline's fail."""
    result = run(cloud, plan(environments=500, cold=10), print, command="make test")
    assert (shortfalls(result), unmeasured(result), result["verdict"]) == ([], [], "held")
    assert [row["requests"] for row in result["rows"]] == [500, 500, 10]
    for row in result["rows"]:
        assert row["answered"]["200"] == row["served"]
        assert sum(row["answered"].values()) == row["requests"]
        used = {part: 1000 * seconds / row["requests"] for part, seconds in row["cpu"].items()}
        parts = ("functions", "postgresql", "daemon", "load")
        assert all(used[part] > 0.1 for part in parts), used  # milliseconds of a request
        assert sum(used.values()) > 5
    ours = result["rows"][1]["cpu"]
    assert ours["pgbouncer"] > 0.2  # 500 logins
    assert ours["balancer"] > 0
    limits = result["calibration"]["limits"]
    assert limits["queue"] < limits["checkout"] < limits["function"] <= 25


@pytest.mark.parametrize("driver", [our_driver, second_driver.locust])
def test_both_drivers_count_what_the_api_counts(cloud: LocalCloud, driver: Driver) -> None:
    """Whether the API serves all requests or rejects all of them."""
    row = Row("lambda-pg", "users", 30, path="/users")
    stage = set_up(cloud, print)
    served = stage.storm(row, driver)
    refused = replace(stage, token="nobody's").storm(row, driver)
    assert (served.requests, served.served, served.answered) == (30, 30, {"200": 30})
    assert (refused.requests, refused.failed, refused.answered) == (30, 30, {"401": 30})
