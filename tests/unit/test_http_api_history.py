"""What the API remembers of its answers."""

from lambda_pg_cdk.local.http_api.history import KEPT, History
from tests.support.clocks import FixedClock


def test_answers_are_counted_by_second_and_status_class() -> None:
    """With the median and the 95th percentile of their durations, by nearest rank."""
    clock = FixedClock()
    history = History(clock)
    for milliseconds in range(1, 101):
        history.add(200 if milliseconds > 3 else 503, milliseconds / 1000)
    clock.now += 2.5
    history.add(404, 0.25)
    assert history.seconds() == [
        {"second": 1_000_000, "statuses": {"5xx": 3, "2xx": 97}, "p50": 0.05, "p95": 0.095},
        {"second": 1_000_002, "statuses": {"4xx": 1}, "p50": 0.25, "p95": 0.25},
    ]


def test_only_the_last_minutes_are_remembered() -> None:
    """Also when nothing was answered for long."""
    clock = FixedClock()
    history = History(clock)
    for _ in range(2 * KEPT):
        history.add(200, 0.1)
        clock.now += 1
    assert len(history.seconds()) == KEPT
    clock.now += KEPT + 1
    assert history.seconds() == []
