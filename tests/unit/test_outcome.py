"""Whether a server's word about a transaction counts: only where it can be about that one."""

from unittest.mock import Mock

import pytest
from lambda_pg._outcome import SOUND, TransactionId, asking, transaction_id
from psycopg.pq.abc import PGresult

STARTED = (833_000_000_000_000).to_bytes(8, "big")
RESET = (833_000_000_000_001).to_bytes(8, "big")
LATER = (833_000_000_000_002).to_bytes(8, "big")
OURS = TransactionId((4_294_967_297).to_bytes(8, "big"), (STARTED, RESET))


def answer(*values: bytes | None) -> PGresult:
    """Make the one row of a result."""
    return Mock(PGresult, nfields=len(values), get_value=lambda _, column: values[column])


@pytest.mark.parametrize("status", [b"committed", b"aborted", b"in progress"])
def test_the_word_of_the_same_server_counts(status: bytes) -> None:
    """Neither moment has changed."""
    assert OURS.status(answer(status, STARTED, RESET, b"\1")) == status.decode()


@pytest.mark.parametrize("status", [b"committed", b"aborted", b"in progress"])
@pytest.mark.parametrize(
    ("moments", "sound"),
    [((LATER, RESET), b"\1"), ((STARTED, LATER), b"\1"), ((STARTED, RESET), b"\0")],
    ids=["another start", "another reset", "a version or an engine that was not tested"],
)
def test_no_word_of_another_server_counts(
    status: bytes, moments: tuple[bytes, bytes], sound: bytes
) -> None:
    """Not even that it was aborted."""
    assert OURS.status(answer(status, *moments, sound)) is None


def test_a_transaction_that_is_too_old_is_unknown() -> None:
    """PostgreSQL answers NULL."""
    assert OURS.status(answer(None, STARTED, RESET, b"\1")) is None


@pytest.mark.parametrize("moments", [(), (None, None), (STARTED, None)])
def test_missing_moments_are_never_the_same(moments: tuple[bytes | None, ...]) -> None:
    """Two servers that cannot tell are not one server."""
    ours = TransactionId(OURS.number, moments)
    seen = moments or (None, None)
    assert ours.status(answer(b"committed", *seen, b"\1")) is None


def test_the_answer_to_the_question_is_read() -> None:
    """The id without moments where they were not asked for; nothing where nothing was written."""
    assert transaction_id(answer(OURS.number, STARTED, RESET)) == OURS
    assert transaction_id(answer(OURS.number)) == TransactionId(OURS.number, ())
    assert transaction_id(answer(None, STARTED, RESET)) is None


def test_people_read_a_number_and_two_times() -> None:
    """As psql shows them, in UTC."""
    assert OURS.xid == "4294967297"
    assert OURS.incarnation == ("2026-05-25 04:53:20+00:00 / 2026-05-25 04:53:20.000001+00:00")
    assert TransactionId(OURS.number, ()).incarnation is None


def test_only_versions_that_were_crashed_are_asked_for_moments() -> None:
    """PostgreSQL 13 and 14 would read a file for them, newer ones may keep statistics."""
    asked = {major for major in range(10, 30) if b"pg_stat" in asking(major * 10000 + 1).text}
    assert asked == set(SOUND)
    assert b"pg_stat" not in asking(0).text
