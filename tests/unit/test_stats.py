"""Counters of a database, and the metrics made of them."""

import inspect
import json
import re
import time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from lambda_pg import Database, Settings
from lambda_pg._stats import METRICS, MetricLines, Stats
from psycopg_pool import ConnectionPool

OURS = {"retries", "refreshes", "deadline_cancels", "leaks"}
"""What psycopg_pool has no name for."""

THEIRS = {
    value
    for name, value in inspect.getmembers(ConnectionPool)
    if re.fullmatch(r"_(POOL|REQUESTS|CONNECTIONS|RETURNS|USAGE)_[A-Z_]+", name)
}
"""The names of psycopg_pool's get_stats(), which it keeps in constants of its base class."""

UNITS = {"Count", "Milliseconds"}

COUNTERS = st.fixed_dictionaries({name: st.integers(0, 10**12) for name in METRICS})


def test_the_names_are_psycopg_pools() -> None:
    """Who reads get_stats() finds the same names here, and four more."""
    assert len(THEIRS) == 15
    names = set(Database(Settings(host="db.example", user="u", password="p")).stats())
    assert names - OURS <= THEIRS
    assert names >= OURS
    assert THEIRS - names == {"usage_ms"}


def test_a_new_database_has_counted_nothing() -> None:
    """All counters are whole numbers and start at nought."""
    stats = Database(Settings(host="db.example", user="u", password="p", slots=3)).stats()
    assert stats.pop("pool_max") == 3
    assert set(stats.values()) == {0}
    assert {type(value) for value in stats.values()} == {int}


def test_times_are_whole_milliseconds() -> None:
    """Times are kept exactly and shown rounded."""
    stats = Stats()
    for _ in range(10):
        stats.connections_ms += 0.16
    assert stats.counters()["connections_ms"] == 2


def test_every_metric_has_a_counter_and_a_name_of_its_own() -> None:
    """What goes to CloudWatch is counted, in units that it knows."""
    assert METRICS.keys() <= Stats().counters().keys() | {"refreshes"}
    names = [name for name, _ in METRICS.values()]
    assert len(set(names)) == len(names)
    assert {unit for _, unit in METRICS.values()} <= UNITS


def counted(**changes: int) -> dict[str, int]:
    """Return all the counters, with some of them counted."""
    return dict.fromkeys(METRICS, 0) | changes


def test_a_line_tells_what_an_invocation_added() -> None:
    """The counters are totals, the lines are not: CloudWatch adds them up."""
    lines = MetricLines("f")
    first = line_of(lines, counted(requests_num=3, connections_num=1), "r1")
    second = line_of(lines, counted(requests_num=5, connections_num=1, retries=2), "r2")
    assert (first["Checkouts"], first["Connects"]) == (3, 1)
    assert (second["Checkouts"], second["Retries"]) == (2, 2)
    assert "Connects" not in second
    assert (second["FunctionName"], second["AwsRequestId"]) == ("f", "r2")


def test_an_invocation_that_used_no_database_has_no_line() -> None:
    """Nothing counted, nothing to pay for."""
    lines = MetricLines("f")
    assert lines.line(counted(), "r1") is None
    assert lines.line(counted(requests_num=1), "r2") is not None
    assert lines.line(counted(requests_num=1), "r3") is None


@given(totals=st.lists(COUNTERS, min_size=1, max_size=4))
def test_lines_are_valid_in_the_embedded_metric_format(totals: list[dict[str, int]]) -> None:
    """Whatever was counted, CloudWatch can read each line, and the lines add up to the totals."""
    lines = MetricLines("f")
    grown = counted()
    sums = dict.fromkeys((name for name, _ in METRICS.values()), 0)
    for step in totals:
        grown = {name: grown[name] + step[name] for name in grown}
        text = lines.line(grown, "r")
        assert (text is None) == (not any(step.values()))
        if text is not None:
            document = json.loads(text)
            assert_valid(text, document)
            for name in sums:
                sums[name] += document.get(name, 0)
    assert sums == {name: grown[counter] for counter, (name, _) in METRICS.items()}


def line_of(lines: MetricLines, counters: dict[str, int], request_id: str) -> dict[str, Any]:
    """Return the line for these counters, read."""
    text = lines.line(counters, request_id)
    assert text is not None
    assert_valid(text, document := json.loads(text))
    return dict(document)


def assert_valid(text: str, document: dict[str, Any]) -> None:
    """Check the rules of CloudWatch's specification of the embedded metric format.

    https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/
    CloudWatch_Embedded_Metric_Format_Specification.html
    """
    assert "\n" not in text
    assert len(text) < 256 * 1024
    metadata = document["_aws"]
    assert metadata.keys() == {"Timestamp", "CloudWatchMetrics"}
    assert isinstance(metadata["Timestamp"], int)
    assert abs(metadata["Timestamp"] / 1000 - time.time()) < 60
    (directive,) = metadata["CloudWatchMetrics"]
    assert directive.keys() == {"Namespace", "Dimensions", "Metrics"}
    assert re.fullmatch(r"[0-9A-Za-z.\-_/#: ]{1,256}", directive["Namespace"])
    assert not directive["Namespace"].startswith("AWS/")
    for dimensions in directive["Dimensions"]:
        assert len(dimensions) <= 30
        for name in dimensions:
            assert isinstance(document[name], str)
            assert 1 <= len(document[name]) <= 1024
    assert 1 <= len(directive["Metrics"]) <= 100
    for metric in directive["Metrics"]:
        assert metric.keys() == {"Name", "Unit"}
        assert metric["Unit"] in UNITS
        assert type(document[metric["Name"]]) is int
        assert document[metric["Name"]] > 0
