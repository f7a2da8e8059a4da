"""How long a request goes on trying, and what it says when it gives up."""

import math
import random
from types import SimpleNamespace

import psycopg
import pytest
from lambda_pg import CheckoutTimeoutError, DatabaseUnavailableError, DeadlineExceededError
from lambda_pg import _retry as window_module
from lambda_pg._overload import (
    BUDGET,
    FAILURES,
    PROBE,
    PROBE_PAUSE,
    Breaker,
    NotReachedError,
    RetryBudget,
)
from lambda_pg._retry import FIRST_PAUSE, LAST_ATTEMPT, LONGEST_PAUSE, Window

CAUSE = psycopg.OperationalError("connection refused\n\tIs the server running?")


class Time:
    """A time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        """Start at an arbitrary time."""
        self.now = 1000.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.sleeps.append(seconds)
        self.now += seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    """The window's time, in the test's hands; its jitter is the same in every run."""
    time = Time()
    monkeypatch.setattr(window_module, "monotonic", time)
    monkeypatch.setattr(window_module, "time", SimpleNamespace(sleep=time.sleep))
    monkeypatch.setattr(window_module, "jitter", random.Random(7))  # noqa: S311 - repeatable is what it must be
    return time


@pytest.fixture
def breaker(time: Time) -> Breaker:
    """A closed breaker."""
    return Breaker(time)


@pytest.fixture
def budget(time: Time) -> RetryBudget:
    """A whole budget."""
    return RetryBudget(time)


@pytest.fixture
def window(breaker: Breaker, budget: RetryBudget) -> Window:
    """A window of 3 s without a deadline."""
    return Window(3, math.inf, breaker=breaker, budget=budget)


def give_up(window: Window, *, absent: bool = True) -> DatabaseUnavailableError:
    """Fail until the window lets no further attempt."""

    def fail_again() -> None:
        for _ in range(1000):
            window.pause(CAUSE, absent=absent)

    with pytest.raises(DatabaseUnavailableError) as caught:
        fail_again()
    assert caught.value.__cause__ is CAUSE
    return caught.value


def test_a_request_tries_until_its_window_ends(window: Window, time: Time) -> None:
    """It sleeps between attempts, never past the end, and gives up with the count and the cause."""
    began = time.now
    error = give_up(window)
    assert isinstance(error, CheckoutTimeoutError)
    assert 3 - 2 * LAST_ATTEMPT <= time.now - began < 3
    attempts = len(time.sleeps) + 1
    assert str(error) == (
        f"no success within 3.0 s ({attempts} attempts); the last one failed: connection refused"
    )


def test_a_window_ends_with_an_attempt(time: Time, breaker: Breaker, budget: RetryBudget) -> None:
    """No pause is so long that more than 0.2 s of the window pass unused."""
    for _ in range(300):
        window = Window(3, math.inf, breaker=Breaker(time), budget=RetryBudget(time))
        began = time.now
        give_up(window)
        assert 3 - 2 * LAST_ATTEMPT <= time.now - began < 3


def test_pauses_grow_and_have_full_jitter(time: Time, breaker: Breaker) -> None:
    """The bound doubles from the first pause to the longest, and a pause is anywhere below it."""
    for _ in range(200):
        window = Window(60, math.inf, breaker=Breaker(time), budget=RetryBudget(time))
        for _ in range(8):
            window.pause(CAUSE)
    shares = []
    for turn in range(8):
        bound = min(LONGEST_PAUSE, FIRST_PAUSE * 2**turn)
        pauses = time.sleeps[turn::8]
        assert max(pauses) <= bound
        shares += [pause / bound for pause in pauses]
    assert min(shares) < 0.01
    assert max(shares) > 0.99
    assert 0.45 < sum(shares) / len(shares) < 0.55


def test_what_a_request_has_spent_before_counts(
    time: Time, breaker: Breaker, budget: RetryBudget
) -> None:
    """The window is the request's, not that of its second attempt."""
    window = Window(3, math.inf, breaker=breaker, budget=budget, spent=2)
    assert window.remaining() == 1
    time.sleep(2)
    assert window.remaining() == 0


def test_the_window_can_restart_once(window: Window, time: Time) -> None:
    """Time in which the database was at work is not time in which it was away."""
    time.sleep(2.9)
    window.restart()
    assert window.remaining() == 3
    time.sleep(1)
    window.restart()
    assert window.remaining() == 2


def test_an_earlier_deadline_ends_the_window(
    time: Time, breaker: Breaker, budget: RetryBudget
) -> None:
    """Of the two ends the earlier one holds, and the error says which it was."""
    window = Window(3, time.now + 1, breaker=breaker, budget=budget)
    assert window.remaining() == 1
    assert window.deadline == time.now + 1
    began = time.now
    error = give_up(window)
    assert isinstance(error, DeadlineExceededError)
    assert not error.may_have_run
    assert time.now - began < 1
    assert "deadline passed after" in str(error)
    assert str(error).endswith("the last one failed: connection refused")


def test_a_deadline_that_has_passed_lets_nothing_begin(
    time: Time, breaker: Breaker, budget: RetryBudget
) -> None:
    """No time is left for even a first checkout."""
    window = Window(3, time.now, breaker=breaker, budget=budget)
    with pytest.raises(DeadlineExceededError, match="before the database was asked"):
        window.remaining()


def test_a_later_deadline_changes_nothing(
    time: Time, breaker: Breaker, budget: RetryBudget
) -> None:
    """A window that ends first is a checkout timeout."""
    window = Window(3, time.now + 25, breaker=breaker, budget=budget)
    assert window.remaining() == 3
    assert isinstance(give_up(window), CheckoutTimeoutError)


def test_one_attempt_is_spelt_as_one(time: Time, breaker: Breaker, budget: RetryBudget) -> None:
    """The error is a sentence."""
    window = Window(3, math.inf, breaker=breaker, budget=budget, spent=3)
    assert "(1 attempt);" in str(give_up(window))


def test_an_environment_that_has_spent_its_budget_says_so(
    window: Window, time: Time, budget: RetryBudget
) -> None:
    """There is time, but no retry left: the database is not hammered by one environment."""
    for _ in range(BUDGET):
        budget.spend()
    error = give_up(window)
    assert not isinstance(error, CheckoutTimeoutError | DeadlineExceededError)
    assert "spent its budget of retries (after 1 attempt)" in str(error)
    assert str(error).endswith("the last one failed: connection refused")
    assert not time.sleeps


def test_a_retry_that_has_no_time_spends_nothing(
    time: Time, breaker: Breaker, budget: RetryBudget
) -> None:
    """Giving up is free."""
    give_up(Window(3, math.inf, breaker=breaker, budget=budget, spent=3))
    assert sum(budget.spend() for _ in range(BUDGET)) == BUDGET


def test_conflicts_have_the_window_for_a_bound_and_cost_no_budget(
    time: Time, breaker: Breaker, budget: RetryBudget
) -> None:
    """Serialization failures and deadlocks are no absence, however many requests meet them."""
    for _ in range(20):
        error = give_up(Window(3, math.inf, breaker=breaker, budget=budget), absent=False)
        assert isinstance(error, CheckoutTimeoutError)
    assert sum(budget.spend() for _ in range(BUDGET)) == BUDGET


@pytest.mark.parametrize(
    "unseen", [NotReachedError("connection refused"), psycopg.errors.ConnectionTimeout("silence")]
)
def test_what_the_server_has_not_seen_costs_no_budget(
    unseen: psycopg.OperationalError, time: Time, breaker: Breaker, budget: RetryBudget
) -> None:
    """A refusal by the kernel, and a connect that is not finished, is kept, and cost it nothing."""
    for _ in range(BUDGET):
        budget.spend()
    window = Window(3, math.inf, breaker=breaker, budget=budget)
    for _ in range(5):
        window.pause(unseen)
    assert "budget of retries" in str(give_up(window))


def test_outages_in_a_row_do_not_spend_the_budget(time: Time) -> None:
    """A minute of outages of 1.5 s with 0.5 s between them, for one request at a time."""
    budget = RetryBudget(time)
    for _ in range(30):
        window = Window(3, math.inf, breaker=Breaker(time), budget=budget)
        ends = time.now + 1.5
        while time.now < ends:
            window.pause(CAUSE)
        time.now += 0.5


def test_requests_that_give_up_open_the_breaker(
    time: Time, breaker: Breaker, budget: RetryBudget
) -> None:
    """Then a window is refused at once, and after the pause one probe has a short one."""
    for _ in range(FAILURES):
        give_up(Window(3, math.inf, breaker=breaker, budget=budget, spent=3))
    with pytest.raises(DatabaseUnavailableError, match="the next try is in") as caught:
        Window(3, math.inf, breaker=breaker, budget=budget)
    assert caught.value.retry_after > 0
    time.sleep(PROBE_PAUSE[1])
    assert Window(3, math.inf, breaker=breaker, budget=budget).remaining() == PROBE


def test_conflicts_do_not_open_the_breaker(
    time: Time, breaker: Breaker, budget: RetryBudget
) -> None:
    """A database that answers with a deadlock is there."""
    for _ in range(FAILURES + 1):
        give_up(Window(3, math.inf, breaker=breaker, budget=budget, spent=3), absent=False)
    assert not breaker.is_open


def test_the_deadline_says_that_an_earlier_attempt_may_have_run(
    time: Time, breaker: Breaker, budget: RetryBudget
) -> None:
    """An idempotent statement that was lost once is not certainly undone by what follows."""
    for may_have_run in (False, True):
        window = Window(3, time.now + 1, breaker=breaker, budget=budget)
        window.may_have_run = may_have_run
        error = give_up(window)
        assert isinstance(error, DeadlineExceededError)
        assert error.may_have_run is may_have_run
