"""Cuts and kills at a chosen phase of a transaction: before, in and after its COMMIT."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Final, Literal

import psutil
import psycopg
from psycopg.rows import TupleRow

from benchmarks.once.audit import connected, count, dsn_of
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.faults import catalogue as faults

Phase = Literal["before", "in", "after"]
"""`before`: the change was made, COMMIT was not sent. `in`: COMMIT runs. `after`: a transaction was
committed, and its answer is on its way."""
Action = Literal[
    "functions cut off",
    "pooler cut off",
    "backend ended",
    "backend killed",
    "environment killed",
    "pooler killed",
]

PHASES: Final[tuple[Phase, ...]] = ("before", "in", "after")
WEIGHTS: Final[dict[Action, int]] = {
    "functions cut off": 4,
    "pooler cut off": 3,
    "backend ended": 3,
    "backend killed": 1,
    "environment killed": 5,
    "pooler killed": 2,
}
"""How often each action is drawn: a crash and a lost pooler end everything for a while."""
PATIENCE: Final = 3.0
"""Seconds to wait for the phase."""
LOOK: Final = 0.002
WINDOW: Final = 0.05
"""Seconds in which a change must be committed so that its answer is still on its way: shorter than
the delay of a slow wire."""
FUNCTION: Final = "users"
BACKENDS: Final[dict[Phase, str]] = {
    "before": "wait_event = 'PgSleep' AND query !~* '^commit'",
    "in": "wait_event = 'PgSleep' AND query ~* '^commit'",
    "after": "state = 'idle'",
}
"""The backends of functions in a phase; the audit's triggers make them sleep."""


@dataclass(frozen=True)
class Strike:
    """An action, and the phase in which some transaction has to be."""

    action: Action
    phase: Phase


def deck(seed: int, size: int) -> list[Strike]:
    """Draw strikes by a seed; each action comes in each phase as soon as there are enough."""
    chance = random.Random(seed)  # noqa: S311 - it draws faults
    every = [Strike(action, phase) for action in WEIGHTS for phase in PHASES]
    chance.shuffle(every)
    weights = [WEIGHTS[strike.action] for strike in every]
    more = chance.choices(every, weights, k=max(0, size - len(every)))
    drawn = [*every[:size], *more]
    chance.shuffle(drawn)
    return drawn


class Saboteur:
    """Carries strikes out on a cloud with wires.

    `struck`: the strikes that met their phase; `missed` those that did not, within PATIENCE, and
    were carried out nevertheless. `killed`: the environments that were killed.
    """

    def __init__(self, cloud: LocalCloud, seed: int) -> None:
        """Take the cloud, and the seed that chooses victims."""
        self._cloud = cloud
        self._chance = random.Random(seed)  # noqa: S311 - it draws victims
        self._dsn = dsn_of(cloud)
        self.struck: Counter[Strike] = Counter()
        self.missed: Counter[Strike] = Counter()
        self.killed = 0
        self._actions: dict[Action, Callable[[list[int]], None]] = {
            "functions cut off": lambda _: self._reset("pooler"),
            "pooler cut off": lambda _: self._reset("database"),
            "backend ended": self._end_backend,
            "backend killed": self._kill_backend,
            "environment killed": lambda _: self._kill_environment(),
            "pooler killed": lambda _: self._kill_pooler(),
        }

    def strike(self, strike: Strike) -> None:
        """Wait for the phase, and act."""
        slow = strike.phase == "after"
        with self._cloud.fault("pooler", "latency") if slow else nullcontext():
            seen = self._await_phase(strike.phase)
            (self.struck if seen else self.missed)[strike] += 1
            self._actions[strike.action](seen)

    def _await_phase(self, phase: Phase) -> list[int]:
        """Return the backends in a phase, empty after PATIENCE; a crashed server is waited for."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            with suppress(psycopg.OperationalError), connected(self._dsn) as admin:
                while time.monotonic() < until:
                    if found := _in_phase(admin, phase):
                        return found
        return []

    def _reset(self, wire: str) -> None:
        with self._cloud.fault(wire, "reset"):
            pass

    def _end_backend(self, found: list[int]) -> None:
        if found:
            with connected(self._dsn) as admin:
                admin.execute("SELECT pg_terminate_backend(%s)", [self._chance.choice(found)])

    def _kill_backend(self, found: list[int]) -> None:
        """Kill one; the server ends all others and recovers."""
        if found:
            with suppress(ProcessLookupError):
                os.kill(self._chance.choice(found), signal.SIGKILL)

    def _kill_environment(self) -> None:
        """Kill one that is not frozen: it has a request."""
        processes = []
        for pid in self._cloud.processes(FUNCTION):
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_STOPPED:
                    processes.append(process)
        if processes:
            with suppress(psutil.NoSuchProcess):
                self._chance.choice(processes).kill()
                self.killed += 1

    def _kill_pooler(self) -> None:
        with suppress(RuntimeError, IndexError, psutil.NoSuchProcess):  # it is down already
            faults.POOLER_KILLED.run(self._cloud)


def _in_phase(admin: psycopg.Connection[TupleRow], phase: Phase) -> list[int]:
    """Look at the backends once; `after` means that a change was committed within WINDOW."""
    before = count(admin) if phase == "after" else -1
    time.sleep(WINDOW if phase == "after" else LOOK)
    if phase == "after" and count(admin) == before:
        return []
    found = admin.execute(
        "SELECT pid FROM pg_stat_activity WHERE usename LIKE 'lambda_pg_user%' AND "  # noqa: S608 - constants
        + BACKENDS[phase]
    )
    return [pid for (pid,) in found]
