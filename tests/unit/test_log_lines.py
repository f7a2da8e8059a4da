"""The lines of functions and of the pooler, as `logs` shows them."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lambda_pg_cdk.local.development.log_lines import DatedEntry, Entry, dated, parse, show
from lambda_pg_cdk.local.development.logs import Logs

REQUEST = "4f9c2f1e-8a43-4d5c-9a55-0f3f0c6b1d11"
MOMENT = datetime(2026, 11, 30, 12, 0, 1, 250000, UTC)


def shown(line: str, *, colour: bool = False) -> str:
    """Show a line of the function `orders`, without the time."""
    entry = parse("orders", line)
    assert entry is not None
    return show(DatedEntry(entry, MOMENT), width=6, colour=colour).partition(" ")[2]


def test_powertools_lines_are_text() -> None:
    """Level, short request id, message and the keys of the handler; not Lambda's own keys."""
    line = {
        "level": "WARNING",
        "location": "handler:12",
        "message": "database unavailable",
        "timestamp": "2026-11-30 13:00:01,250+0100",
        "service": "orders",
        "cold_start": True,
        "function_name": "Stack-Orders",
        "function_request_id": REQUEST,
        "reason": "no pooler",
        "left": 2.5,
        "ids": [1, 2],
    }
    entry = parse("orders", json.dumps(line))
    assert entry is not None
    assert (entry.time, entry.level, entry.request) == (MOMENT, "WARNING", REQUEST)
    text = "database unavailable reason=no pooler left=2.5 ids=[1, 2]"
    assert shown(json.dumps(line)) == f"orders 4f9c2f1e WARNING  {text}"


@pytest.mark.parametrize(
    "line",
    [
        {
            "level": "ERROR",
            "message": "failed",
            "exception": 'Traceback (most recent call last):\n  File "a.py", line 1\nKeyError: 1',
            "exception_name": "KeyError",
        },
        {
            "log_level": "ERROR",
            "message": "failed",
            "stackTrace": ["Traceback (most recent call last):\n", '  File "a.py", line 1\n'],
        },
    ],
    ids=["Powertools", "Lambda"],
)
def test_a_traceback_is_indented_below_its_line(line: dict[str, Any]) -> None:
    """As it would be on a terminal, not as one string with escapes."""
    first, *further = shown(json.dumps(line)).splitlines()
    assert first.endswith("ERROR    failed")
    assert further[:2] == ["    Traceback (most recent call last):", '      File "a.py", line 1']


def test_an_error_of_the_runtime_names_type_and_message() -> None:
    """Lambda's own line of an unhandled error has no message."""
    line = {"errorType": "KeyError", "errorMessage": "'id'", "requestId": REQUEST}
    assert shown(json.dumps(line)).endswith("KeyError: 'id'")


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        ("2026-11-30 12:00:01.250 UTC [7] LOG process up", "INFO", "process up"),
        ("2026-11-30 12:00:01.250 UTC [7] WARNING TLS failed", "WARNING", "TLS failed"),
        ("2026-11-30T12:00:01.250Z starts cold", "", "starts cold"),
        (f"[ERROR] 2026-11-30T12:00:01.250Z {REQUEST} no", "ERROR", "no"),
    ],
    ids=["PgBouncer", "warning", "cloud", "text format"],
)
def test_other_forms_have_their_time_and_level(line: str, level: str, text: str) -> None:
    """PgBouncer's, the local cloud's, and Lambda's text format."""
    entry = parse("pooler", line)
    assert entry is not None
    assert (entry.time, entry.level, entry.text) == (MOMENT, level, text)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose clock shows another time than UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XYZ-3")
        time.tzset()
        yield
    time.tzset()


def test_the_supervisors_time_is_of_this_machine(elsewhere: None) -> None:
    """Python's logging writes no zone."""
    entry = parse("pooler", "2026-11-30 12:00:01,250 supervisor: PgBouncer runs")
    assert entry is not None
    assert entry.time == MOMENT.replace(hour=9)
    assert entry.text == "PgBouncer runs"


@pytest.mark.parametrize("line", ["", "  ", '{"_aws": {"Timestamp": 1}, "Retries": 3}'])
def test_metrics_and_empty_lines_are_left_out(line: str) -> None:
    """They are for machines."""
    assert parse("orders", line) is None


def test_a_line_without_a_time_has_that_of_its_neighbour() -> None:
    """One by `print` has that of the line before; the first ones that of the next."""
    later = MOMENT.replace(second=9)
    entries = [Entry("a", "1"), Entry("a", "2", MOMENT), Entry("a", "3"), Entry("a", "4", later)]
    assert [each.time for each in dated(entries, later)] == [MOMENT, MOMENT, MOMENT, later]
    assert [each.time for each in dated(entries[:1], later)] == [later]


def test_a_request_is_found_by_the_beginning_of_its_id_and_by_text() -> None:
    """The API's id is another one: a line that names it is found as well."""
    entry = DatedEntry(Entry("a", "asked by abc-1", MOMENT, "INFO", REQUEST), MOMENT)
    assert entry.concerns("4f9c")
    assert entry.concerns("abc-1")
    assert not entry.concerns("9c2f")


def test_colour_is_for_terminals() -> None:
    """Codes appear only if asked for, and not around nothing."""
    line = json.dumps({"level": "ERROR", "message": "no"})
    assert "\x1b[" not in shown(line)
    assert "\x1b[31mERROR   \x1b[0m no" in shown(line, colour=True)


def test_a_line_cannot_change_the_terminal() -> None:
    """A value of a caller may contain any character."""
    line = json.dumps({"level": "INFO", "message": "a\x1b[2Jb\tc\nd\x07"})
    assert shown(line).splitlines() == ["orders          INFO     a\ufffd[2Jb\tc", "    d\ufffd"]


def test_all_logs_are_one_stream_in_the_order_of_time(tmp_path: Path) -> None:
    """Functions and tasks of the pooler, also one whose log comes later; half a line waits."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "pooler" / "2").mkdir(parents=True)
    orders, pooler = tmp_path / "logs" / "orders.log", tmp_path / "pooler" / "2" / "pgbouncer.log"
    orders.write_text("2026-11-30T12:00:01Z one\n2026-11-30T12:00:03Z three\n2026-11-30T12:00")
    pooler.write_text("2026-11-30 12:00:02.000 UTC [7] LOG two\n")
    logs = Logs(tmp_path)
    texts = [(each.entry.source, each.entry.text) for each in logs.new_entries()]
    assert texts == [("orders", "one"), ("pooler 2", "two"), ("orders", "three")]
    assert logs.width == len("pooler 2")
    with orders.open("a") as file:
        file.write(":04Z four\n")
    (tmp_path / "logs" / "users.log").write_text("2026-11-30T12:00:05Z five\n")
    assert [each.entry.text for each in logs.new_entries()] == ["four", "five"]
    assert logs.new_entries() == []
