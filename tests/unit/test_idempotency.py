"""What a key is, and how a request waits for the first one with it."""

import uuid
from collections.abc import Iterator
from typing import Any, cast

import pytest
from lambda_pg import Database, DatabaseUnavailableError, DeadlineExceededError
from lambda_pg.http_api import Answer, Problem, idempotency
from lambda_pg.http_api.idempotency import Key

from tests.support.keyed import request

SUBJECT = uuid.uuid4()
DB = cast(Database[Any], None)


def key_of(text: str = "k1", subject: uuid.UUID = SUBJECT, **parts: Any) -> Key:
    """Return the key of a request."""
    return Key.of(request(text, subject=subject, **parts), text, subject)


SAME: list[dict[str, Any]] = [
    {"if-match": '"7"'},
    {"content_type": "Application/JSON; charset=utf-8"},
    {"user-agent": "another"},
]
OTHER_REQUESTS: list[dict[str, Any]] = [
    {"body": "{}"},
    {"body": '{"name": "Ada"} '},
    {"query": "a=1"},
    {"content_type": "application/merge-patch+json"},
]
OTHER_KEYS: list[dict[str, Any]] = [
    {"text": "k2"},
    {"api": "d4e5f6"},
    {"method": "PATCH"},
    {"path": "/things/1"},
    {"path": "/things\udcff"},
]


@pytest.mark.parametrize("parts", SAME, ids=str)
def test_a_repetition_is_recognised(parts: dict[str, Any]) -> None:
    """By what the change depends on, and by nothing else."""
    assert key_of(**parts) == key_of()


@pytest.mark.parametrize("parts", OTHER_REQUESTS, ids=str)
def test_another_request_has_the_key(parts: dict[str, Any]) -> None:
    """The row is found, and its request differs."""
    mine, other = key_of(), key_of(**parts)
    assert other.id == mine.id
    assert other.lock == mine.lock
    assert other.request != mine.request


@pytest.mark.parametrize("parts", OTHER_KEYS, ids=ascii)
def test_another_key(parts: dict[str, Any]) -> None:
    """API, method and path belong to it: two APIs may share a database."""
    mine, other = key_of(), key_of(**parts)
    assert other.id != mine.id
    assert other.lock != mine.lock


def test_the_lock_belongs_to_the_caller_too() -> None:
    """Two callers with the same key do not wait for each other."""
    other = key_of(subject=uuid.uuid4())
    assert other.id == key_of().id
    assert other.lock != key_of().lock


def test_a_lock_is_a_bigint() -> None:
    """Of both signs."""
    locks = [key_of(f"k{number}").lock for number in range(64)]
    assert all(-(2**63) <= lock < 2**63 for lock in locks)
    assert min(locks) < 0 < max(locks)


def test_parts_do_not_run_together() -> None:
    """No other division of the same characters has the same hash."""
    hashes = {
        idempotency._hash(*parts)
        for parts in [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc")]
    }
    assert len(hashes) == 5
    assert idempotency._hash("é") == idempotency._hash("é".encode())


class Clock:
    """Stands for the module `time` and for the layer's clock: a pause takes no time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def monotonic(self) -> float:
        return self.now


Found = tuple[bool, Answer | None] | Exception


class Looks(Key):
    """A key whose looks find what a test says; at the end nothing more changes."""

    found: Iterator[Found] = iter(())

    def look(self, *_: object) -> tuple[bool, Answer | None]:
        found = next(self.found, (False, None))
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that moves by pauses only."""
    clock = Clock()
    monkeypatch.setattr(idempotency, "time", clock)
    monkeypatch.setattr(idempotency, "monotonic", clock.monotonic)
    return clock


def wait(clock: Clock, seconds: float, *found: Found) -> Answer | None:
    """Wait for a first request at most so many seconds, with these looks."""
    key = Looks(*key_of())
    key.found = iter(found)
    return idempotency._await_first(DB, key, {}, clock.now + seconds)


def test_pauses_grow_to_a_bound_and_are_random(clock: Clock) -> None:
    """Each between a half and the whole of the longest, which doubles up to 0.4 s."""
    with pytest.raises(Problem):
        wait(clock, 10)
    longest = [min(0.025 * 2**count, 0.4) for count in range(len(clock.pauses))]
    last = clock.pauses.pop()
    for pause, most in zip(clock.pauses, longest, strict=False):
        assert most / 2 <= pause <= most
    assert last <= 0.4
    assert len(set(clock.pauses)) == len(clock.pauses)
    assert 25 < len(clock.pauses) < 60


def test_the_wait_ends_before_its_deadline(clock: Clock) -> None:
    """With time for the last look, and with the whole time used."""
    with pytest.raises(Problem) as refused:
        wait(clock, 3)
    assert refused.value.name == "idempotency-key-in-use"
    assert refused.value.headers == {"Retry-After": "1"}
    assert sum(clock.pauses) == pytest.approx(3 - idempotency.LAST_LOOK)


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.05])
def test_without_time_there_is_no_look(clock: Clock, seconds: float) -> None:
    """409 at once."""
    with pytest.raises(Problem):
        wait(clock, seconds, (True, None))
    assert clock.pauses == []


def test_a_wait_ends_with_what_it_was_for(clock: Clock) -> None:
    """The stored answer, or a key that is free."""
    answer = Answer(201)
    assert wait(clock, 10, (False, None), (False, answer)) is answer
    assert wait(clock, 10, (False, None), (False, None), (True, None)) is None
    assert len(clock.pauses) == 5


def test_a_deadline_inside_a_look_is_the_end_of_the_wait(clock: Clock) -> None:
    """The first request still runs, as far as is known: 409. An outage is reported as one."""
    with pytest.raises(Problem):
        wait(clock, 10, (False, None), DeadlineExceededError("over"))
    with pytest.raises(DatabaseUnavailableError):
        wait(clock, 10, (False, None), DatabaseUnavailableError("away"))
