"""A simulated recovery from an overload: a fleet logs in at a pooler that has just restarted.

Environments are state machines with the layer's breaker and constants. The pooler is a processor
that handles the steps of all logins in order of arrival, as PgBouncer's loop does.
benchmarks/chaos/recovery.py measures the same with a real PgBouncer.
"""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import pytest
from lambda_pg import _overload
from lambda_pg._attempts import (
    FIRST_REST,
    LONGEST_UNANSWERED,
    MOST,
    PACE,
    PATIENT,
    SLOW,
    UNANSWERED,
)
from lambda_pg._overload import FAILURES, PROBE_PAUSE, Breaker

from lambda_pg_cdk.pgbouncer.configuration import LOGIN_SECONDS, login_timeout

WINDOW: Final = 3.0
JITTER: Final = 0.05
BETWEEN: Final = (0.05, 2.0)
"""Seconds between two requests of an environment, and how much they vary."""

STEPS: Final = (0.02, 0.2, 0.03, 0.6, 0.1, 0.05)
"""The parts of a login: SSLRequest, the handshake's two flights, and SCRAM's three."""

FLEETS: Final = (120, 240, 1000, 5000)
CORES: Final = (0.25, 0.5, 1.0)
SHORT_LOGIN: Final = 15.0
"""The pooler's former timeout for a login, in seconds."""


def promised(count: int, cores: float) -> float:
    """Return 2 s plus twice the seconds that the logins take alone."""
    return 2 + 2 * count * LOGIN_SECONDS / cores


@dataclass(eq=False)
class Connect:
    """One connect, the next step of its login, and the time when the last step was sent.

    `unwatched`: the environment's value at that time.
    """

    began: float
    step: int = 0
    sent: float = 0.0
    unwatched: float = 0.0
    has_rested: bool = False
    dropped: bool = False


@dataclass(eq=False)
class Environment:
    """A client that keeps sending requests while its breaker is open."""

    now: float
    chance: random.Random
    between: float
    breaker: Breaker = field(init=False)
    until: float = 0.0
    """When its probe ends."""
    unwatched: float = 0.0
    """Seconds between two requests so far."""
    open: list[Connect] = field(default_factory=list)
    begun: int = 0
    another_at: float = 0.0

    def __post_init__(self) -> None:
        """Open the breaker by failures, then begin the first probe."""
        self.until = self.now
        self.breaker = Breaker(lambda: self.now)
        for _ in range(FAILURES):
            self.breaker.failed()
        self.probe()

    def probe(self) -> None:
        """Begin the next probe: the requests before it fail at once."""
        asks = max(self.breaker._probe_at, self.until + self.between)
        self.now = asks + self.chance.uniform(0, JITTER)
        self.unwatched += self.now - self.until
        self.until = self.now + self.breaker.admit(WINDOW)

    def drives(self, at: float) -> float:
        """Return the first time from `at` on when a request continues the connects."""
        while self.until <= at:
            self.now = self.until
            self.breaker.failed()
            self.probe()
        return max(self.now, at)


class Simulation:
    """A pooler with a share of a core, and a fleet."""

    def __init__(
        self,
        count: int,
        cores: float,
        between: float,
        *,
        timeout: float,
        keeps: bool = True,
        counts_gaps: bool = False,
    ) -> None:
        """Take a fleet; the pooler is back at 0.

        `keeps`: the layer's policy. `counts_gaps`: its former policy, which counted the time
        between two requests as a wait.
        """
        chance = random.Random(count)  # noqa: S311 - repeatable is what it must be
        self._cores = cores
        self._chance = chance
        self._keeps = keeps
        self._counts_gaps = counts_gaps
        self._timeout = timeout
        self._busy_until = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._left = count
        self.now = 0.0
        for _ in range(count):
            before = chance.uniform(0, max(PROBE_PAUSE[1], between))
            environment = Environment(-before, chance, between)
            self._at(max(0.0, environment.drives(0)), self._begin, environment)

    def recovered(self, limit: float) -> float | None:
        """Return when the last environment was served; None if that is after `limit`."""
        while self._left:
            self.now, _, happens = heapq.heappop(self._events)
            if self.now > limit:
                return None
            happens()
        return self.now

    def _at(self, time: float, action: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._events, (time, next(self._order), lambda: action(*arguments)))

    def _begin(self, environment: Environment) -> None:
        """Begin a connect in addition to those without an answer."""
        if len(environment.open) == MOST:
            environment.open.pop(0).dropped = True
        environment.begun += 1
        connect = Connect(self.now)
        environment.open.append(connect)
        self._send(environment, connect)
        doubled = UNANSWERED * 2.0 ** max(0, environment.begun - PATIENT)
        environment.another_at = self.now + min(LONGEST_UNANSWERED, doubled)
        if self._keeps:
            at = environment.another_at
            self._at(at, self._begin_another, environment)
        else:
            self._at(environment.until, self._give_up, environment, connect)

    def _begin_another(self, environment: Environment) -> None:
        if not environment.open or environment.open[0].step or environment.another_at > self.now:
            return
        at = environment.drives(self.now)
        if at > self.now:
            environment.another_at = at
            self._at(at, self._begin_another, environment)
        else:
            self._begin(environment)

    def _give_up(self, environment: Environment, connect: Connect) -> None:
        """Discard a connect at the end of its probe, and begin another one with the next probe."""
        if connect in environment.open:
            connect.dropped = True
            environment.open.clear()
            self._at(environment.drives(self.now), self._begin, environment)

    def _send(self, environment: Environment, connect: Connect) -> None:
        """Have the pooler handle a step, also if the client drops the connect in the meantime."""
        connect.sent, connect.unwatched = self.now, environment.unwatched
        cost = STEPS[connect.step] * LOGIN_SECONDS / self._cores
        self._busy_until = max(self._busy_until, self.now) + cost
        self._at(self._busy_until, self._answer, environment, connect)

    def _answer(self, environment: Environment, connect: Connect) -> None:
        if connect.dropped:
            return
        if self.now - connect.began > self._timeout:
            environment.open.clear()
            self._at(environment.drives(self.now), self._begin, environment)
            return
        for other in environment.open:
            other.dropped = other is not connect
        environment.open[:] = [connect]
        connect.step += 1
        self._at(self.now + self._rest(environment, connect), self._go_on, environment, connect)

    def _rest(self, environment: Environment, connect: Connect) -> float:
        """Return the seconds until the next step, after a request has read the answer."""
        if not self._keeps:
            return 0.0
        found = environment.drives(self.now)
        waited = found - connect.sent
        if not self._counts_gaps:
            waited -= environment.unwatched - connect.unwatched
        longest = PACE * waited if connect.has_rested else min(FIRST_REST, PACE * waited)
        rests = waited > SLOW
        connect.has_rested = connect.has_rested or rests
        return found - self.now + (self._chance.uniform(0, longest) if rests else 0.0)

    def _go_on(self, environment: Environment, connect: Connect) -> None:
        if connect.dropped:
            return
        at = environment.drives(self.now) if self._keeps else self.now
        if at > self.now:
            self._at(at, self._go_on, environment, connect)
        elif connect.step < len(STEPS):
            self._send(environment, connect)
        else:
            environment.open.clear()
            self._left -= 1


@pytest.fixture(autouse=True)
def same_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same jitter in every run."""
    monkeypatch.setattr(_overload, "jitter", random.Random(7))  # noqa: S311 - repeatable


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("cores", CORES)
@pytest.mark.parametrize("count", FLEETS)
def test_a_fleet_is_back_in_time(count: int, cores: float, between: float) -> None:
    """Within 2 s plus twice the time that its logins take alone, with every size of task."""
    simulation = Simulation(count, cores, between, timeout=login_timeout(count))
    assert simulation.recovered(promised(count, cores)) is not None


@pytest.mark.parametrize("cores", CORES)
@pytest.mark.parametrize("count", FLEETS[:-1])  # 5,000 take minutes to lose
def test_a_fleet_that_discards_its_logins_is_late(count: int, cores: float) -> None:
    """The control: it gives each login one second. It fails if all logins take more than two."""
    limit = promised(count, cores)
    simulation = Simulation(count, cores, BETWEEN[0], keeps=False, timeout=login_timeout(count))
    lost = simulation.recovered(limit) is None
    if count * LOGIN_SECONDS / cores > 2:
        assert lost


@pytest.mark.parametrize(("count", "cores"), [(500, 0.25), (1000, 0.5)])
def test_a_fleet_that_counts_its_pauses_as_waits_is_late(count: int, cores: float) -> None:
    """The control: environments rest for the time between two requests; the pooler is idle."""
    simulation = Simulation(
        count, cores, BETWEEN[1], timeout=login_timeout(count), counts_gaps=True
    )
    assert simulation.recovered(promised(count, cores)) is None


def test_a_login_timeout_that_is_too_short_cuts_all_logins() -> None:
    """The control: 2,500 logins at a quarter of a core take 20 s, and none of them 15."""
    limit = promised(2500, 0.25)
    for timeout, is_over in ((SHORT_LOGIN, False), (login_timeout(2500), True)):
        simulation = Simulation(2500, 0.25, BETWEEN[0], timeout=timeout)
        assert (simulation.recovered(limit) is not None) is is_over
