"""When to stop trying: a budget of retries, and a breaker for a database that is away."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lambda_pg import DatabaseUnavailableError
from lambda_pg._overload import (
    BUDGET,
    FAILURES,
    PROBE,
    PROBE_PAUSE,
    RETRY_REFILL_RATE,
    SLOW_LOGIN,
    Breaker,
    RetryBudget,
)

from tests.support.clocks import FixedClock

WINDOW = 3.0


@pytest.fixture
def clock() -> FixedClock:
    """A clock at an arbitrary time."""
    return FixedClock()


def spent(budget: RetryBudget) -> int:
    """Spend what there is; return how much it was."""
    count = 0
    while budget.spend():
        count += 1
        assert count <= BUDGET
    return count


def test_a_budget_can_be_spent_once(clock: FixedClock) -> None:
    """A new environment has the whole budget, and then nothing."""
    budget = RetryBudget(clock)
    assert spent(budget) == BUDGET
    assert not budget.spend()


def test_a_budget_comes_back_with_time(clock: FixedClock) -> None:
    """What was spent comes back second by second, also by halves, and never more than all."""
    budget = RetryBudget(clock)
    spent(budget)
    clock.now += 5.5 / RETRY_REFILL_RATE
    assert spent(budget) == 5
    clock.now += 0.5 / RETRY_REFILL_RATE
    assert spent(budget) == 1
    clock.now += 86_400
    assert spent(budget) == BUDGET


def test_a_clock_that_is_set_back_gives_and_takes_nothing(clock: FixedClock) -> None:
    """The budget is what it was, and comes back from the new time on."""
    budget = RetryBudget(clock)
    spent(budget)
    clock.now -= 3600
    assert not budget.spend()
    clock.now += 2 / RETRY_REFILL_RATE
    assert spent(budget) == 2


@given(st.lists(st.tuples(st.floats(-10, 100), st.integers(0, 100)), max_size=30))
def test_a_budget_bounds_the_retries_of_any_time(steps: list[tuple[float, int]]) -> None:
    """However time goes, no more is spent than the budget and what came back."""
    clock = FixedClock()
    budget = RetryBudget(clock)
    total, earned = 0, 0.0
    for step, wanted in steps:
        clock.now += step
        earned += max(0.0, step) * RETRY_REFILL_RATE
        total += sum(budget.spend() for _ in range(wanted))
        assert total <= BUDGET + earned + 0.001


def opened(clock: FixedClock) -> Breaker:
    """Open a breaker; the pause before its first probe runs."""
    breaker = Breaker(clock)
    for _ in range(FAILURES):
        assert breaker.admit(WINDOW) == WINDOW
        breaker.failed()
    return breaker


def refusal(breaker: Breaker) -> DatabaseUnavailableError:
    """Expect that a request is failed at once."""
    with pytest.raises(DatabaseUnavailableError, match="the next try is in") as caught:
        breaker.admit(WINDOW)
    return caught.value


def test_a_breaker_opens_after_failures_in_a_row(clock: FixedClock) -> None:
    """The first failures are tried in full; then requests fail at once and say how long for."""
    breaker = opened(clock)
    assert breaker.is_open
    error = refusal(breaker)
    assert PROBE_PAUSE[0] <= error.retry_after <= PROBE_PAUSE[1]
    assert f"last {FAILURES} requests" in str(error)


def test_a_success_between_failures_keeps_it_closed(clock: FixedClock) -> None:
    """Only failures in a row count."""
    breaker = Breaker(clock)
    for _ in range(10):
        for _ in range(FAILURES - 1):
            breaker.failed()
        breaker.succeeded()
    assert breaker.admit(WINDOW) == WINDOW


def test_one_request_at_a_time_looks_for_the_database(clock: FixedClock) -> None:
    """After the pause one request is a probe, which is short; the others still fail at once."""
    breaker = opened(clock)
    clock.now += PROBE_PAUSE[1]
    assert breaker.admit(WINDOW) == PROBE
    for _ in range(5):
        assert refusal(breaker).retry_after <= PROBE + PROBE_PAUSE[1]
    breaker.failed()
    refusal(breaker)
    clock.now += PROBE_PAUSE[1]
    assert breaker.admit(0.5) == 0.5


def test_a_probe_that_finds_the_database_closes_it(clock: FixedClock) -> None:
    """From then on every request is tried in full, and it takes as many failures to open again."""
    breaker = opened(clock)
    clock.now += PROBE_PAUSE[1]
    breaker.admit(WINDOW)
    breaker.succeeded()
    assert not breaker.is_open
    assert breaker.admit(WINDOW) == breaker.admit(WINDOW) == WINDOW


def test_a_probe_that_never_reports_is_followed_by_another(clock: FixedClock) -> None:
    """An invocation may end without a word: the breaker does not wait for it."""
    breaker = opened(clock)
    clock.now += PROBE_PAUSE[1]
    breaker.admit(WINDOW)
    clock.now += PROBE + PROBE_PAUSE[1]
    assert breaker.admit(WINDOW) == PROBE


def test_a_clock_that_is_set_back_lets_a_probe_through(clock: FixedClock) -> None:
    """No hour of failing fast follows an hour that the clock is set back."""
    breaker = opened(clock)
    clock.now -= 3600
    assert breaker.admit(WINDOW) == PROBE
    refusal(breaker)


def test_a_thawed_environment_probes_at_once(clock: FixedClock) -> None:
    """Frozen while open, an environment looks again with its first request."""
    breaker = opened(clock)
    clock.now += 3600
    assert breaker.admit(WINDOW) == PROBE


def test_probes_of_a_fleet_do_not_march(clock: FixedClock) -> None:
    """The pause before a probe is spread over its bounds."""
    pauses = {refusal(opened(clock)).retry_after for _ in range(50)}
    assert len(pauses) > 40
    assert min(pauses) < sum(PROBE_PAUSE) / 2 < max(pauses)


def test_a_slow_login_in_vain_is_followed_by_a_rest(clock: FixedClock) -> None:
    """A pooler with too many logins to do is not given another at once; its time doubles."""
    breaker = Breaker(clock)
    breaker.logged_in(4)
    assert breaker.admit(WINDOW) == WINDOW  # nothing has failed
    breaker.failed()
    assert 1 <= breaker.rest <= 4
    with pytest.raises(DatabaseUnavailableError, match="overloaded with logins"):
        breaker.admit(WINDOW)
    clock.now += 4
    assert breaker.admit(WINDOW) == WINDOW
    breaker.logged_in(4)
    assert 2 <= breaker.rest <= 8


def test_a_quick_login_is_followed_by_no_rest(clock: FixedClock) -> None:
    """Of a healthy pooler, whatever it refuses."""
    breaker = Breaker(clock)
    breaker.failed()
    breaker.logged_in(SLOW_LOGIN)
    assert breaker.rest == 0
    assert breaker.admit(WINDOW) == WINDOW


def test_the_promise_of_the_first_success_holds() -> None:
    """A probe that has just begun when the fault ends fails, and the next one still is in time."""
    assert PROBE + PROBE_PAUSE[1] < 2
