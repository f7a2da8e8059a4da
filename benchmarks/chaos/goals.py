"""What chaos promises, held against one row of measures. Pure: no I/O, no clock."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from benchmarks.chaos.ledger import Findings, Request

LATE: Final = 1.0
"""Seconds after the checkout timeout by which a request that fails has its answer."""
RECOVERY: Final = 2.0
"""Seconds after the end of a fault by which the first request is served."""
COLUMNS: Final = 10
"""Columns of the timeline for a second."""


@dataclass(frozen=True)
class Measures:
    """One row: what clients saw while one fault came and went; times are seconds.

    `began` and `ended` are the fault's, from the beginning of the row, as `timeline` is: requests
    that ended well and not well in each tenth of a second. `planned` is how long the fault was
    meant to last. `failed_*` are requests without success,
    those of unknown outcome among them, but for notes, which have `unknown_notes`. `aside` are
    requests that were made to be slow: their times are not measured, and `held_up` counts those
    that ended after the fault. `repeats_failed` are repeats under a known key that were not
    answered as done. `struck` are calls of Secrets Manager that failed or were late.
    `new_clients` are connections that functions opened since the fault began, `ended_backends`
    those of the pooler in PostgreSQL that did not outlive the row, `restarted` is 1 if PostgreSQL
    was, `replaced` are tasks of the pooler that had not run before. `*_connects` are the most in
    one second, and `back` the client connections at the end of the row; 0 where they were not
    counted.
    """

    requests: int
    failed_reads: int
    failed_writes: int
    failed_notes: int
    unknown_notes: int
    unknown_writes: int
    bad_answers: int
    slowest_failure: float
    longest_gap: float
    recovery: float | None
    failed_after: int
    aside: int
    aside_failed: int
    held_up: int
    began: float
    ended: float
    planned: float
    acknowledged: int
    lost: int
    duplicated: int
    hidden: int
    half_done: int
    off_balance: int
    unknown_but_done: int
    repeated: int
    repeats_failed: int
    timeline: list[tuple[int, int]] = field(repr=False)
    struck: int = 0
    new_clients: int = 0
    ended_backends: int = 0
    restarted: int = 0
    replaced: int = 0
    client_connects: int = 0
    server_connects: int = 0
    back: int = 0

    @property
    def seconds(self) -> float:
        """How long the fault lasted."""
        return self.ended - self.began


@dataclass(frozen=True)
class Goal:
    """What a row promises beside what all do.

    `nobody_fails`: however long it takes, since there is always somebody who serves. `known`: no
    outcome is unknown. `crash`: the outcome of a transfer may be, as a server that has crashed
    cannot say it with certainty. `answer_late`: seconds that a failing request may take beside the
    checkout timeout and LATE. `served_after`: no request that began later than RECOVERY after the
    fault failed. `held_up`, `struck`, `new_clients`, `ended_backends`, `restarted`, `replaced`,
    `back`, and `gap`, the longest one in seconds: the least that shows that the fault was there.
    `client_connects`, `server_connects`: the most in one second.
    """

    nobody_fails: bool = False
    known: bool = False
    crash: bool = False
    answer_late: float = 0.0
    served_after: bool = True
    held_up: int = 0
    struck: int = 0
    new_clients: int = 0
    ended_backends: int = 0
    restarted: int = 0
    replaced: int = 0
    back: int = 0
    gap: float = 0.0
    client_connects: int | None = None
    server_connects: int | None = None


def measure(
    requests: Sequence[Request],
    findings: Findings,
    *,
    fault: tuple[float, float],
    end: float,
    planned: float = 0.0,
    repeats: Sequence[Request] = (),
) -> Measures:
    """Count; `fault` is when it began and ended, `end` when the row did, all from its beginning."""
    measured = [request for request in requests if not request.aside]
    aside = [request for request in requests if request.aside]
    failed = [request for request in measured if request.outcome != "done"]
    served = [request.ended for request in measured if request.outcome == "done"]
    after = [at for at in served if at >= fault[1]]
    return Measures(
        requests=len(measured),
        failed_reads=_count(failed, "read"),
        failed_writes=_count(failed, "transfer"),
        failed_notes=sum(r.kind == "note" and r.outcome != "unknown" for r in failed),
        unknown_notes=sum(r.kind == "note" and r.outcome == "unknown" for r in failed),
        unknown_writes=sum(r.kind == "transfer" and r.outcome == "unknown" for r in failed),
        bad_answers=sum(
            r.outcome != "done" and (r.status != 503 or not r.retry_after) for r in requests
        ),
        slowest_failure=max((request.seconds for request in failed), default=0.0),
        longest_gap=longest_gap(served, end),
        recovery=min(after) - fault[1] if after else None,
        failed_after=sum(request.started > fault[1] + RECOVERY for request in failed),
        aside=len(aside),
        aside_failed=sum(request.outcome != "done" for request in aside),
        held_up=sum(request.ended > fault[1] for request in aside),
        began=fault[0],
        ended=fault[1],
        planned=planned,
        acknowledged=findings.acknowledged,
        lost=findings.lost,
        duplicated=findings.duplicated,
        hidden=findings.hidden,
        half_done=findings.half_done,
        off_balance=findings.off_balance,
        unknown_but_done=findings.unknown_but_done,
        repeated=len(repeats),
        repeats_failed=sum(request.outcome != "done" for request in repeats),
        timeline=timeline(measured, end),
    )


def _count(requests: Iterable[Request], kind: str) -> int:
    return sum(request.kind == kind for request in requests)


def longest_gap(served: Iterable[float], end: float) -> float:
    """Return the longest time without a success, from the beginning to `end`."""
    moments = [0.0, *sorted(served), end]
    return max(later - earlier for earlier, later in pairwise(moments))


def timeline(requests: Iterable[Request], end: float) -> list[tuple[int, int]]:
    """Count, for each tenth of a second, the requests that ended well and those that did not."""
    columns = [[0, 0] for _ in range(int(end * COLUMNS) + 1)]
    for request in requests:
        column = columns[min(int(request.ended * COLUMNS), len(columns) - 1)]
        column[request.outcome != "done"] += 1
    return [(well, ill) for well, ill in columns]


def misses(row: Measures, goal: Goal, checkout_timeout: float) -> list[str]:
    """Name every promise that a row breaks; none is a row that has held."""
    return [
        *_integrity(row),
        *_failures(row, goal, checkout_timeout),
        *_answers(row, goal, checkout_timeout),
        *_strength(row, goal),
        *_connects(row, goal),
    ]


def _integrity(row: Measures) -> Iterator[str]:
    if not row.requests or not row.acknowledged:
        yield "nothing was asked, or nothing acknowledged: the row proves nothing"
    for name, what in (
        ("lost", "acknowledged and not there"),
        ("duplicated", "there more than once"),
        ("hidden", 'there, though told "not done"'),
        ("half_done", "transfers without their two movements"),
        ("off_balance", "off the constant sum of all balances"),
    ):
        if count := getattr(row, name):
            yield f"{count} {name.replace('_', ' ')}: {what}"
    if row.repeats_failed:
        yield f"{row.repeats_failed} of {row.repeated} repeats were not answered as done"


def _failures(row: Measures, goal: Goal, checkout_timeout: float) -> Iterator[str]:
    if goal.known and row.unknown_notes:
        yield f"{row.unknown_notes} notes of unknown outcome, though no answer can have been lost"
    survived = row.planned <= checkout_timeout
    if survived and row.seconds > checkout_timeout and not goal.nobody_fails:
        yield (
            f"the fault lasted {row.seconds:.1f} s instead of {row.planned:g} s, more than the "
            f"checkout timeout of {checkout_timeout:g} s: the row proves nothing"
        )
    if goal.nobody_fails or survived:
        writes = row.failed_writes - (row.unknown_writes if goal.crash else 0)
        failed = {"reads": row.failed_reads, "writes": writes, "notes": row.failed_notes}
        told = ", ".join(f"{count} {kind}" for kind, count in failed.items() if count)
        if told:
            yield f"failed {told}: nothing may in a fault that is survived"
    if row.aside_failed:
        yield f"{row.aside_failed} slow requests failed"
    if goal.served_after and row.failed_after:
        yield f"{row.failed_after} requests failed that began {RECOVERY:g} s after the fault"


def _answers(row: Measures, goal: Goal, checkout_timeout: float) -> Iterator[str]:
    if row.bad_answers:
        yield f"{row.bad_answers} requests were not served and got no 503 with Retry-After"
    limit = checkout_timeout + LATE + goal.answer_late
    if row.slowest_failure > limit:
        yield f"a failing request took {row.slowest_failure:.1f} s, more than {limit:g} s"
    if row.recovery is None or row.recovery > RECOVERY:
        when = "never" if row.recovery is None else f"after {row.recovery:.1f} s"
        yield f"the first success after the fault came {when}, later than {RECOVERY:g} s"


def _strength(row: Measures, goal: Goal) -> Iterator[str]:
    for name, what in (
        ("held_up", "requests were held up by the fault"),
        ("struck", "calls of Secrets Manager met the fault"),
        ("new_clients", "connections of functions were opened anew"),
        ("ended_backends", "backends of the pooler have ended"),
        ("restarted", "restarts of PostgreSQL were seen"),
        ("replaced", "tasks of the pooler were started in place of others"),
        ("back", "client connections were there at the end"),
    ):
        least, seen = getattr(goal, name), getattr(row, name)
        if seen < least:
            yield f"only {seen} {what}, at least {least} prove anything"
    if row.longest_gap < goal.gap:
        yield f"a gap of only {row.longest_gap:.1f} s, at least {goal.gap:g} s prove anything"


def _connects(row: Measures, goal: Goal) -> Iterator[str]:
    for name in ("client_connects", "server_connects"):
        bound, seen = getattr(goal, name), getattr(row, name)
        if bound is not None and not 0 < seen <= bound:
            yield f"{seen} {name.replace('_', ' ')} in one second: allowed are 1 to {bound}"
