"""Measures of one chaos row, and the goals that it must meet. Pure: no I/O, no clock."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import pairwise
from typing import Any, Final

from benchmarks.chaos.ledger import Findings, Request

LATE: Final = 1.0
"""Seconds that a failing request may take beyond the checkout timeout."""
RECOVERY: Final = 2.0
"""Seconds after the end of a fault by which the first request must succeed."""
COLUMNS: Final = 10
"""Timeline columns per second."""


@dataclass(frozen=True)
class Answers:
    """How many requests succeeded and failed.

    `failed_*` includes requests of unknown outcome, except for notes: `failed_notes` does not.
    `bad_answers`: failures without 503 and Retry-After. `untimed`: requests that are slow on
    purpose; no other field counts them, except `bad_answers`. `repeated`: transfers sent a second
    time under a known key; `repeats_failed` did not succeed.
    """

    requests: int
    failed_reads: int
    failed_writes: int
    failed_notes: int
    unknown_notes: int
    unknown_writes: int
    bad_answers: int
    untimed: int
    untimed_failed: int
    repeated: int
    repeats_failed: int


@dataclass(frozen=True)
class Times:
    """When the fault came and went, and how long it was felt, in seconds from the row's start.

    `began` and `ended` are the fault's; `planned` is how long it was meant to last. `recovery`:
    from the end of the fault to the first success, None without one. `failed_after`: the number of
    failed requests that began more than RECOVERY after the fault. `timeline`: successes and
    failures in each tenth of a second.
    """

    began: float
    ended: float
    planned: float
    slowest_failure: float
    longest_gap: float
    recovery: float | None
    failed_after: int
    timeline: list[tuple[int, int]] = field(repr=False)

    @property
    def lasted(self) -> float:
        """How long the fault lasted."""
        return self.ended - self.began


@dataclass(frozen=True)
class Effects:
    """Counts that show that the fault happened.

    `held_up`: untimed requests that ended after the fault. `faulted_calls`: calls of Secrets
    Manager that failed or were delayed. `new_clients`: connections that functions opened since the
    fault began. `ended_backends`: the pooler's backends that ended during the row. `restarted`: 1
    if PostgreSQL restarted. `replaced`: new pooler tasks. `back`: client connections at the end.
    """

    held_up: int = 0
    faulted_calls: int = 0
    new_clients: int = 0
    ended_backends: int = 0
    restarted: int = 0
    replaced: int = 0
    back: int = 0


@dataclass(frozen=True)
class Measures:
    """One row: what clients saw, when, what the audit found, and what the fault did.

    `*_connects`: the most connections opened within one second; 0 where they were not counted.
    """

    answers: Answers
    times: Times
    findings: Findings
    effects: Effects = Effects()
    client_connects: int = 0
    server_connects: int = 0


@dataclass(frozen=True)
class Goal:
    """What a row promises, in addition to what every row promises.

    `no_failures`: no request fails, however long the fault lasts. `known`: no note has an
    unknown outcome. `crash`: transfers may have an unknown outcome, as a crashed server cannot
    report it. `answer_late`: seconds that a failing request may take beyond the checkout
    timeout and LATE. `served_after`: no request fails that began more than RECOVERY after the
    fault. `gap`: the shortest time without a success, in seconds, and `least` the smallest
    counts, that prove that the fault happened. `held_up_fail`: untimed requests that ended
    after the fault may fail: it outlasts `idle_transaction_timeout`, and a transaction that
    took too long is not retried. `*_connects`: the most connections within one second.
    """

    no_failures: bool = False
    known: bool = False
    crash: bool = False
    answer_late: float = 0.0
    served_after: bool = True
    gap: float = 0.0
    held_up_fail: bool = False
    least: Effects = Effects()
    client_connects: int | None = None
    server_connects: int | None = None


def columns(group: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, and of those nested in it, as one flat dict."""
    found: dict[str, Any] = {}
    for each in fields(group):
        value = getattr(group, each.name)
        found |= columns(value) if is_dataclass(value) else {each.name: value}
    return found


# Measuring


def measure(
    requests: Sequence[Request],
    findings: Findings,
    *,
    fault: tuple[float, float],
    end: float,
    planned: float = 0.0,
    repeats: Sequence[Request] = (),
) -> Measures:
    """Count the requests of a row.

    `fault` is when the fault began and ended, `end` when the row did, in seconds from its start.
    """
    timed = [request for request in requests if not request.untimed]
    held_up = sum(request.untimed and request.ended > fault[1] for request in requests)
    return Measures(
        answers=answers_of(requests, repeats),
        times=times_of(timed, fault=fault, end=end, planned=planned),
        findings=findings,
        effects=Effects(held_up=held_up),
    )


def answers_of(requests: Sequence[Request], repeats: Sequence[Request]) -> Answers:
    """Count successes and failures by kind and outcome."""
    timed = [request for request in requests if not request.untimed]
    untimed = [request for request in requests if request.untimed]
    failed = Counter((r.kind, r.outcome == "unknown") for r in timed if r.failed)
    return Answers(
        requests=len(timed),
        failed_reads=failed["read", False] + failed["read", True],
        failed_writes=failed["transfer", False] + failed["transfer", True],
        failed_notes=failed["note", False],
        unknown_notes=failed["note", True],
        unknown_writes=failed["transfer", True],
        bad_answers=sum(r.failed and not r.is_unavailable for r in requests),
        untimed=len(untimed),
        untimed_failed=sum(request.failed for request in untimed),
        repeated=len(repeats),
        repeats_failed=sum(request.failed for request in repeats),
    )


def times_of(
    requests: Sequence[Request], *, fault: tuple[float, float], end: float, planned: float
) -> Times:
    """Find when requests succeeded and failed."""
    began, ended = fault
    failed = [request for request in requests if request.failed]
    served = [request.ended for request in requests if not request.failed]
    return Times(
        began=began,
        ended=ended,
        planned=planned,
        slowest_failure=max((request.seconds for request in failed), default=0.0),
        longest_gap=longest_gap(served, end),
        recovery=min((at - ended for at in served if at >= ended), default=None),
        failed_after=sum(request.started > ended + RECOVERY for request in failed),
        timeline=timeline(requests, end),
    )


def longest_gap(served: Iterable[float], end: float) -> float:
    """Return the longest time without a success, from the row's start to `end`."""
    moments = [0.0, *sorted(served), end]
    return max(later - earlier for earlier, later in pairwise(moments))


def timeline(requests: Iterable[Request], end: float) -> list[tuple[int, int]]:
    """Count successes and failures in each tenth of a second, by the end of the request."""
    counts = [[0, 0] for _ in range(int(end * COLUMNS) + 1)]
    for request in requests:
        column = counts[min(int(request.ended * COLUMNS), len(counts) - 1)]
        column[request.failed] += 1
    return [(served, failed) for served, failed in counts]


# Checking


def misses(row: Measures, goal: Goal, checkout_timeout: float) -> list[str]:
    """Name every promise that a row breaks; an empty list is a row that met its goal."""
    return [miss for check in CHECKS for miss in check(row, goal, checkout_timeout)]


Misses = Iterator[str]
Check = Callable[[Measures, Goal, float], Misses]


def _is_not_empty(row: Measures, *_: object) -> Misses:
    if not row.answers.requests or not row.findings.acknowledged:
        yield "no request, or no acknowledged write: the row proves nothing"


def _ledger_is_right(row: Measures, *_: object) -> Misses:
    for name, meaning in (
        ("lost", "acknowledged, but missing"),
        ("duplicated", "present more than once"),
        ("hidden", 'present, but reported as "not done"'),
        ("half_done", "transfers without their two movements"),
        ("off_balance", "difference from the constant sum of all balances"),
    ):
        if found := getattr(row.findings, name):
            yield f"{found} {name.replace('_', ' ')}: {meaning}"


def _repeats_succeed(row: Measures, *_: object) -> Misses:
    if failed := row.answers.repeats_failed:
        yield f"{failed} of {row.answers.repeated} repeats were not answered as done"


def _outcomes_are_known(row: Measures, goal: Goal, _: float) -> Misses:
    if goal.known and row.answers.unknown_notes:
        yield f"{row.answers.unknown_notes} notes of unknown outcome; no answer can be lost here"


def _is_short(row: Measures, checkout_timeout: float) -> bool:
    """Tell whether retries must outlast the fault: by its planned length."""
    return row.times.planned <= checkout_timeout


def _fault_is_as_short_as_planned(row: Measures, goal: Goal, checkout_timeout: float) -> Misses:
    too_long = _is_short(row, checkout_timeout) and row.times.lasted > checkout_timeout
    if too_long and not goal.no_failures:
        yield (
            f"the fault lasted {row.times.lasted:.1f} s instead of {row.times.planned:g} s, more "
            f"than the checkout timeout of {checkout_timeout:g} s: the row proves nothing"
        )


def _short_fault_fails_no_request(row: Measures, goal: Goal, checkout_timeout: float) -> Misses:
    if not goal.no_failures and not _is_short(row, checkout_timeout):
        return
    answers = row.answers
    writes = answers.failed_writes - (answers.unknown_writes if goal.crash else 0)
    failed = {"reads": answers.failed_reads, "writes": writes, "notes": answers.failed_notes}
    if counts := ", ".join(f"{number} {kind}" for kind, number in failed.items() if number):
        yield f"failed {counts}: no request may fail in this row"


def _untimed_succeed(row: Measures, goal: Goal, _: float) -> Misses:
    allowed = row.effects.held_up if goal.held_up_fail else 0
    if (failed := row.answers.untimed_failed) > allowed:
        yield f"{failed} slow requests failed; at most {allowed} may"


def _served_after(row: Measures, goal: Goal, _: float) -> Misses:
    if goal.served_after and (failed := row.times.failed_after):
        yield f"{failed} requests failed that began more than {RECOVERY:g} s after the fault"


def _failures_are_503(row: Measures, *_: object) -> Misses:
    if bad := row.answers.bad_answers:
        yield f"{bad} requests failed without 503 and Retry-After"


def _failures_are_quick(row: Measures, goal: Goal, checkout_timeout: float) -> Misses:
    slowest, limit = row.times.slowest_failure, checkout_timeout + LATE + goal.answer_late
    if slowest > limit:
        yield f"a failing request took {slowest:.1f} s; the limit is {limit:g} s"


def _recovery_is_quick(row: Measures, *_: object) -> Misses:
    recovery = row.times.recovery
    if recovery is None:
        yield f"no success after the fault; the limit is {RECOVERY:g} s"
    elif recovery > RECOVERY:
        limit = f"the limit is {RECOVERY:g} s"
        yield f"the first success came {recovery:.1f} s after the fault; {limit}"


def _fault_had_effects(row: Measures, goal: Goal, _: float) -> Misses:
    for name, what in (
        ("held_up", "requests delayed by the fault"),
        ("faulted_calls", "faulted calls of Secrets Manager"),
        ("new_clients", "new connections of functions"),
        ("ended_backends", "ended backends of the pooler"),
        ("restarted", "restarts of PostgreSQL"),
        ("replaced", "new pooler tasks"),
        ("back", "client connections at the end"),
    ):
        least, found = getattr(goal.least, name), getattr(row.effects, name)
        if found < least:
            yield f"only {found} {what}, fewer than {least}: the row proves nothing"


def _fault_left_a_gap(row: Measures, goal: Goal, _: float) -> Misses:
    gap = row.times.longest_gap
    if gap < goal.gap:
        yield (
            f"the longest time without a success is {gap:.1f} s, less than {goal.gap:g} s: the row "
            "proves nothing"
        )


def _connects_are_bounded(row: Measures, goal: Goal, _: float) -> Misses:
    for name in ("client_connects", "server_connects"):
        bound, found = getattr(goal, name), getattr(row, name)
        if bound is not None and not 0 < found <= bound:
            yield f"{found} {name.replace('_', ' ')} in one second; must be 1 to {bound}"


CHECKS: Final[tuple[Check, ...]] = (
    _is_not_empty,
    _ledger_is_right,
    _repeats_succeed,
    _outcomes_are_known,
    _fault_is_as_short_as_planned,
    _short_fault_fails_no_request,
    _untimed_succeed,
    _served_after,
    _failures_are_503,
    _failures_are_quick,
    _recovery_is_quick,
    _fault_had_effects,
    _fault_left_a_gap,
    _connects_are_bounded,
)
