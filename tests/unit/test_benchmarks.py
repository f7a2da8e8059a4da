"""The arithmetic of the benchmarks, and the check that keeps the README honest."""

import json

import pytest

from benchmarks.load import Outcome, summarise
from benchmarks.report import BEGIN, END, STORM, filled, storm_table


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


def test_the_table_shows_every_row_of_the_committed_result() -> None:
    """No row is left out, whatever it looks like."""
    result = json.loads(STORM.read_text())
    table = storm_table(result)
    assert table.count("\n| ") == len(result["rows"])
    for row in result["rows"]:
        assert f"{row['served']} of {row['requests']}" in table


def test_a_number_typed_by_hand_is_noticed() -> None:
    """The check compares the README with what the results make of it."""
    readme = f"intro\n{BEGIN}\n| typed by hand |\n{END}\nrest"
    assert filled(readme, "| measured |") == f"intro\n{BEGIN}\n| measured |\n{END}\nrest"
    assert filled(readme, "| measured |") != readme
