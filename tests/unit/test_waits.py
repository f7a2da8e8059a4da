"""The sums of the waits: those of docs/operations.md are those of the product's own numbers."""

import re
from pathlib import Path

import pytest
from lambda_pg._connector import TCP_USER_TIMEOUT

from lambda_pg_cdk.pgbouncer.configuration import login_timeout
from tests.support.wait_sums import IN_FLIGHT, RETRANSMISSIONS, SURVIVED, WAITS, survived

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()
TEXT = " ".join(PAGE.split())


@pytest.mark.parametrize("fault", WAITS)
def test_the_page_shows_the_sum(fault: str) -> None:
    """Each fault has a row with its waits, and the longest one that fails no request."""
    (row,) = re.findall(rf"(?m)^\| {fault}[^|]*\|([^|]*)\| ([0-9.]+) s \|$", PAGE)
    waits = [float(number) for number in re.findall(r"([0-9.]+) s", row[0])]
    assert waits == [round(wait, 2) for wait in WAITS[fault]]
    assert float(row[1]) == SURVIVED[fault]


def test_a_sum_is_never_rounded_up() -> None:
    """What is promised holds."""
    for fault, waits in WAITS.items():
        for timeout in (2.0, 3.0, 5.0):
            assert 0 <= timeout - sum(waits) - survived(fault, timeout) < 0.1


def test_lost_packets_of_a_statement_are_given_up_after_the_window() -> None:
    """The page says 3 s."""
    assert f"{TCP_USER_TIMEOUT / 1000:g} s (`tcp_user_timeout`)" in TEXT


def test_lost_packets_of_a_statement_are_retransmitted_in_the_window() -> None:
    """The page names each retransmission, and the longest loss that fails no request."""
    found = re.search(
        r"TCP retransmits them after ([0-9., s]+?) and ([0-9.]+) s, and gives up", TEXT
    )
    assert found is not None
    times = [float(time) for time in (*found[1].split(", "), found[2])]
    assert times == [after for after in RETRANSMISSIONS if after <= IN_FLIGHT]
    assert f"no request fails if the loss lasts up to {IN_FLIGHT} s" in TEXT


def test_every_client_of_a_task_has_time_to_log_in() -> None:
    """Twice 8 ms for each, at a quarter of a core, and never less than 15 s."""
    assert login_timeout(10) == 15
    assert login_timeout(2000) == 32
    assert login_timeout(5000) == 80
