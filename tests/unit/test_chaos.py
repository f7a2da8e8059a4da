"""The ledger's audit and the goals of chaos; each finds the error that it is there for."""

import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from typing import Any
from unittest.mock import Mock

import psutil
import psycopg
import pytest

from benchmarks.chaos import long
from benchmarks.chaos.crashes import Count, WriterSummary
from benchmarks.chaos.goals import (
    Effects,
    Goal,
    Measures,
    columns,
    longest_gap,
    measure,
    misses,
    timeline,
)
from benchmarks.chaos.ledger import (
    ACCOUNTS,
    OPENING_BALANCE,
    Books,
    Findings,
    Kind,
    Outcome,
    Request,
    audit,
)
from benchmarks.chaos.run import GOALS, SILENT, Connects, draw, plan, shortfalls
from benchmarks.chaos.steady import outcome_of
from benchmarks.summary import chaos_summary
from benchmarks.tables import chaos_table, crashes_table
from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.faults import catalogue as faults
from lambda_pg_cdk.local.faults.catalogue import FAULTS

TOTAL = ACCOUNTS * OPENING_BALANCE
CHECKOUT = 3.0


def request(kind: Kind, key: str, outcome: Outcome, at: float = 0.0, **more: Any) -> Request:
    """Make a request that took 10 ms."""
    status = 200 if outcome == "done" else 503
    return Request(kind, key, at, more.pop("seconds", 0.01), status, status == 503, outcome, **more)


DONE = request("transfer", "t1", "done")
NOTED = request("note", "n1", "done")
REQUESTS = [DONE, NOTED, request("transfer", "t2", "not done"), request("note", "n2", "unknown")]
BOOKS = Books(
    total=TOTAL,
    transfers=Counter({"t1": 1}),
    movements=Counter({"t1": 2}),
    unbalanced=0,
    notes=Counter({"n1": 1}),
)

# The audit


def test_books_that_agree_with_the_clients_are_clean() -> None:
    """An unknown write may be present or not; the audit counts those that are."""
    assert audit(REQUESTS, BOOKS) == Findings(2, 0, 0, 0, 0, 0, 0)
    found = audit(REQUESTS, replace(BOOKS, notes=Counter({"n1": 1, "n2": 1})))
    assert found.clean
    assert found.unknown_but_done == 1


@pytest.mark.parametrize(
    ("made_up", "wrong"),
    [
        ({"transfers": Counter(), "movements": Counter()}, {"lost": 1}),
        ({"notes": Counter()}, {"lost": 1}),
        ({"notes": Counter({"n1": 2})}, {"duplicated": 1}),
        ({"notes": Counter({"n1": 1, "n2": 2})}, {"duplicated": 1}),
        ({"movements": Counter({"t1": 4})}, {"duplicated": 1}),
        ({"movements": Counter({"t1": 1})}, {"half_done": 1}),
        ({"transfers": Counter({"t1": 1, "t2": 1}), "movements": Counter({"t1": 2, "t2": 2})},
         {"hidden": 1}),
        ({"notes": Counter({"n1": 1, "nobody's": 1})}, {"hidden": 1}),
        ({"movements": Counter({"t1": 2, "t2": 2})}, {"half_done": 1}),
        ({"total": TOTAL - 1}, {"off_balance": 1}),
        ({"unbalanced": 2}, {"off_balance": 2}),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_books_is_found(
    made_up: dict[str, Any], wrong: dict[str, int]
) -> None:
    """Each made-up loss, duplicate and half transfer counts under its name."""
    found = audit(REQUESTS, replace(BOOKS, **made_up))
    assert not found.clean
    names = ("lost", "duplicated", "hidden", "half_done", "off_balance")
    assert {name: getattr(found, name) for name in names if getattr(found, name)} == wrong


def test_a_key_that_came_again_is_acknowledged_by_any_of_its_answers() -> None:
    """Repeated until it was done: it must be present, once."""
    requests = [request("transfer", "t", "unknown"), request("transfer", "t", "done")]
    there = replace(
        BOOKS, transfers=Counter({"t": 1}), movements=Counter({"t": 2}), notes=Counter()
    )
    gone = replace(there, transfers=Counter(), movements=Counter())
    assert audit(requests, there).clean
    assert audit(requests, gone).lost == 1


def test_what_was_sent_once_and_run_twice_is_found() -> None:
    """The books are right: only the answer shows that an earlier run had done it."""
    twice = replace(DONE, already=True)
    assert audit([twice, NOTED], BOOKS).duplicated == 1
    assert audit([DONE, NOTED, twice], BOOKS).clean  # a repeat is not new


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (200, {}, "done"),
        (503, {"outcome": "not done"}, "not done"),
        (503, {"outcome": "unknown"}, "unknown"),
        (503, {"message": "Service Unavailable"}, "no answer"),
        (500, {"outcome": "not done"}, "no answer"),
        (503, None, "no answer"),
    ],
)
def test_only_the_function_itself_can_say_not_done(
    status: int, body: Any, outcome: Outcome
) -> None:
    """An answer of the API or of a broken function leaves the outcome unknown."""
    assert outcome_of(status, body) == outcome


# The measures


def test_a_row_is_measured_from_its_requests() -> None:
    """Failures count by kind, unknown notes apart; untimed requests do not count."""
    requests = [
        request("read", "", "done", 0.5),
        request("read", "", "not done", 1.1, seconds=2.0),
        request("transfer", "t", "unknown", 1.2),
        request("note", "a", "not done", 1.3),
        request("note", "b", "unknown", 1.4),
        request("transfer", "slow", "not done", 1.0, seconds=9.0, untimed=True),
        request("read", "", "done", 2.5),
    ]
    row = measure(requests, audit([], BOOKS), fault=(1.0, 2.0), end=4.0)
    answers = row.answers
    assert (answers.failed_reads, answers.failed_writes, answers.failed_notes) == (1, 1, 1)
    assert (answers.unknown_writes, answers.unknown_notes) == (1, 1)
    assert answers.requests == 6
    assert (answers.untimed, answers.untimed_failed, row.effects.held_up) == (1, 1, 1)
    assert row.times.slowest_failure == 2.0
    assert row.times.recovery == pytest.approx(0.51)
    assert row.times.longest_gap == pytest.approx(2.0)


def test_what_a_fault_held_up_may_fail_where_the_goal_says_so() -> None:
    """A transaction that was frozen for longer than it may be idle is rolled back, and answered."""
    row = changed(MET, untimed_failed=2, held_up=2)
    assert misses(row, Goal(held_up_fail=True), CHECKOUT) == []


def test_a_bad_answer_to_an_untimed_request_counts() -> None:
    """It must get 503 and Retry-After too."""
    slow = replace(request("transfer", "t", "no answer", untimed=True), status=500)
    row = measure([DONE, slow], audit([], BOOKS), fault=(0.0, 0.0), end=1.0)
    assert row.answers.bad_answers == 1


def test_a_repeat_without_success_is_counted() -> None:
    """With any answer but success."""
    repeats = [DONE, request("transfer", "t2", "unknown")]
    row = measure([DONE], audit([], BOOKS), fault=(0.0, 0.0), end=1.0, repeats=repeats)
    assert (row.answers.repeated, row.answers.repeats_failed) == (2, 1)


def test_the_longest_gap_begins_and_ends_with_the_row() -> None:
    """A row without any success is one gap."""
    assert longest_gap([], 5.0) == 5.0
    assert longest_gap([1.0, 1.5], 2.0) == 1.0


def test_the_timeline_has_a_column_for_each_tenth_of_a_second() -> None:
    """A request counts where it ended, as a success or as a failure."""
    requests = [request("read", "", "done", 0.05), request("read", "", "not done", 0.25)]
    assert timeline(requests, 0.3) == [(1, 0), (0, 0), (0, 1), (0, 0)]


# The goals

GROUPS = ("answers", "times", "findings", "effects")


def changed(row: Measures, **values: Any) -> Measures:
    """Change fields of a row, each in the group that has it."""
    for name in GROUPS:
        group = getattr(row, name)
        mine = {key: values.pop(key) for key in list(values) if hasattr(group, key)}
        row = replace(row, **{name: replace(group, **mine)})
    return replace(row, **values)


MET = changed(
    measure([DONE, NOTED], audit([DONE, NOTED], BOOKS), fault=(0.0, 0.005), end=1.0),
    recovery=0.1,
)
LONG = changed(MET, ended=10.0, planned=10.0, failed_reads=9, failed_writes=9, failed_notes=9)
EFFECTS = Effects(
    held_up=1,
    faulted_calls=1,
    new_clients=1,
    ended_backends=1,
    restarted=1,
    replaced=1,
    back=5,
)
STRICT = Goal(
    no_failures=True,
    known=True,
    gap=0.5,
    least=EFFECTS,
    client_connects=5,
    server_connects=5,
)
STRICT_MET = replace(MET, effects=EFFECTS, client_connects=5, server_connects=5)


def test_a_row_that_meets_its_goal_misses_nothing() -> None:
    """A short fault, a long one whose failures were answered well, and every stricter goal."""
    assert misses(MET, Goal(), CHECKOUT) == []
    assert misses(changed(LONG, slowest_failure=4.0), Goal(), CHECKOUT) == []
    assert misses(changed(MET, unknown_notes=3), Goal(), CHECKOUT) == []
    unknown = changed(MET, failed_writes=2, unknown_writes=2)
    assert misses(unknown, Goal(crash=True), CHECKOUT) == []
    assert misses(STRICT_MET, STRICT, CHECKOUT) == []
    assert misses(changed(MET, ended=3.1), Goal(no_failures=True), CHECKOUT) == []


def test_a_result_has_every_measure_and_goal_in_one_level() -> None:
    """So results that are committed already have the shape of new ones."""
    row, goal = columns(STRICT_MET), columns(STRICT)
    assert (row["requests"], row["lost"], row["replaced"], row["client_connects"]) == (2, 0, 1, 5)
    assert (goal["known"], goal["replaced"], goal["client_connects"]) == (True, 1, 5)
    assert not {*GROUPS, "least"} & {*row, *goal}


@pytest.mark.parametrize(
    ("row", "goal", "reason"),
    [
        (changed(MET, requests=0), Goal(), "proves nothing"),
        (changed(MET, lost=1), Goal(), "1 lost"),
        (changed(MET, duplicated=2), Goal(), "2 duplicated"),
        (changed(MET, hidden=1), Goal(), "1 hidden"),
        (changed(MET, half_done=1), Goal(), "1 half done"),
        (changed(MET, off_balance=1), Goal(), "1 off balance"),
        (changed(MET, failed_reads=1), Goal(), "failed 1 reads"),
        (changed(MET, failed_writes=1), Goal(), "failed 1 writes"),
        (changed(MET, failed_notes=1), Goal(), "failed 1 notes"),
        (changed(MET, failed_writes=1, unknown_writes=1), Goal(), "failed 1 writes"),
        (changed(MET, failed_writes=2, unknown_writes=1), Goal(crash=True), "failed 1 writes"),
        (changed(MET, repeated=5, repeats_failed=1), Goal(), "1 of 5 repeats"),
        (changed(MET, untimed_failed=1), Goal(), "1 slow requests failed; at most 0 may"),
        (
            changed(MET, untimed_failed=2, held_up=1),
            Goal(held_up_fail=True),
            "2 slow requests failed; at most 1 may",
        ),
        (changed(MET, ended=3.1), Goal(), "lasted 3.1 s instead of 0 s, more than"),
        (LONG, Goal(no_failures=True), "failed 9 reads, 9 writes, 9 notes"),
        (changed(LONG, failed_after=1), Goal(), "1 requests failed that began more than 2 s after"),
        (changed(LONG, slowest_failure=4.1), Goal(), "took 4.1 s; the limit is 4 s"),
        (changed(LONG, slowest_failure=7.1), Goal(answer_late=3), "the limit is 7 s"),
        (changed(LONG, bad_answers=1), Goal(), "1 requests failed without 503"),
        (changed(LONG, recovery=2.1), Goal(), "came 2.1 s after the fault; the limit is 2 s"),
        (changed(LONG, recovery=None), Goal(), "no success after the fault"),
        (changed(STRICT_MET, unknown_notes=1), STRICT, "1 notes of unknown outcome"),
        (changed(STRICT_MET, held_up=0), STRICT, "only 0 requests delayed"),
        (changed(STRICT_MET, faulted_calls=0), STRICT, "only 0 faulted calls of Secrets Manager"),
        (changed(STRICT_MET, new_clients=0), STRICT, "only 0 new connections of functions"),
        (changed(STRICT_MET, ended_backends=0), STRICT, "only 0 ended backends"),
        (changed(STRICT_MET, restarted=0), STRICT, "only 0 restarts"),
        (changed(STRICT_MET, replaced=0), STRICT, "only 0 new pooler tasks"),
        (changed(STRICT_MET, back=4), STRICT, "only 4 client connections"),
        (
            changed(STRICT_MET, longest_gap=0.4),
            STRICT,
            "without a success is 0.4 s, less than 0.5 s",
        ),
        (changed(STRICT_MET, client_connects=6), STRICT, "6 client connects in one second"),
        (changed(STRICT_MET, server_connects=0), STRICT, "0 server connects in one second"),
    ],
)
def test_each_broken_promise_is_named(row: Measures, goal: Goal, reason: str) -> None:
    """There is one miss; it says what was promised and what was found."""
    (missed,) = misses(row, goal, CHECKOUT)
    assert reason in missed


# The run


def result(**changes: Any) -> dict[str, Any]:
    """Make a result of one row."""
    goal = columns(Goal(client_connects=5, server_connects=4))
    row = {"name": "x", "title": "a fault", "missed": [], **columns(MET), "goal": goal}
    control = {"name": "a control", "requests": 5, "failed": 3, "during": {"a": 1, "b": 2}}
    machine = {"cores": 2, "processor": "a processor"}
    versions = {"postgresql": "17", "pgbouncer": "1", "python": "3"}
    origin = {"machine": machine, "versions": versions, "date": "2026-11-25", "caveats": ["none"]}
    run = {"seed": 7, "clients": 2, "checkout_timeout": 3, "command": "make chaos", "seconds": 600}
    return {**origin, **run, "control": control, "rows": [row], "crashes": [CRASHES], **changes}


CRASHES = {
    "kind": "one backend killed",
    "path": "direct",
    "flush": "default",
    "crashes": 2,
    "layer": asdict(Count(acknowledged=1000, unknown=3)),
    "control": asdict(Count(acknowledged=500, lost=1)),
}


def test_a_missed_goal_or_a_control_that_did_not_fail_fails_the_run() -> None:
    """Either is enough; otherwise the run passes."""
    good = result()
    assert shortfalls(good) == []
    (row,) = good["rows"]
    assert shortfalls(result(rows=[{**row, "missed": ["1 lost"]}])) == ["x: 1 lost"]
    tame = {**good["control"], "during": {"a": 3, "b": 0}}
    assert shortfalls(result(control=tame)) == [
        "the control did not fail during b: the faults prove nothing"
    ]
    assert shortfalls(result(seconds=601)) == ["the run took 601 s; the limit is 600 s"]


@pytest.mark.parametrize("wrong", ["lost", "duplicated", "hidden"])
def test_a_commit_that_a_crash_has_taken_fails_the_run(wrong: str) -> None:
    """Lost, present twice, or present although it was reported as not run."""
    broken = {**CRASHES, "layer": {**asdict(Count(acknowledged=1000)), wrong: 2}}
    assert shortfalls(result(crashes=[broken])) == [
        f"one backend killed, direct, flush default: 2 {wrong}"
    ]


def test_crashes_in_which_the_control_loses_nothing_prove_nothing() -> None:
    """All rows together count, as a crash may interrupt no commit."""
    tame = {**CRASHES, "control": asdict(Count(acknowledged=500))}
    assert shortfalls(result(crashes=[tame, CRASHES])) == []
    assert shortfalls(result(crashes=[tame])) == [
        "the control lost nothing: the crashes prove nothing"
    ]


def test_the_rows_of_a_writer_are_compared_with_its_summary() -> None:
    """A row that is neither unknown nor refused is acknowledged: it must be present, once."""
    summary = WriterSummary(first=1, last=6, unknown=[2, 3], refused=[4])
    count = Count()
    count.add(summary, {1: 1, 2: 1, 5: 1, 6: 1})
    assert count == Count(acknowledged=3, unknown=2, refused=1)
    count.add(summary, {1: 2, 4: 1, 5: 1})
    assert count == Count(acknowledged=6, unknown=4, refused=2, lost=1, duplicated=1, hidden=1)


def test_a_long_run_of_too_few_commits_or_crashes_fails() -> None:
    """The result must have the promised numbers."""
    few = long.shortfalls({"crashes": [CRASHES], "recovery": {"missed": ["120 were too late"]}})
    assert few == [
        "120 were too late",
        "only 1,000 commits; at least 500,000 are needed",
        "only 2 crashes; at least 40 are needed",
    ]


def test_the_table_of_crashes_shows_the_control() -> None:
    """In the same line as the layer."""
    line = "| one backend killed | direct | default | 2 | 1,000 | 3 | 0 | 0 | 1 of 500 |"
    assert line in crashes_table(result())


def test_the_table_marks_what_was_missed() -> None:
    """A row each, and the control in the caption."""
    good = result()
    assert "| a fault | 0.0 s | 2 | 0, 0, 0 |" in chaos_table(good)
    assert "3 of 5 requests failed" in chaos_table(good)
    assert "(a fault): at most 0 client and 0 server connections" in chaos_table(good)
    (row,) = good["rows"]
    assert "**a fault: missed**" in chaos_table(result(rows=[{**row, "missed": ["1 lost"]}]))


def test_a_note_of_unknown_outcome_is_a_failed_request() -> None:
    """Its client got no success."""
    good = result()
    (row,) = good["rows"]
    assert "in 1 scenarios no request failed" in chaos_summary(good)
    noted = result(rows=[{**row, "unknown_notes": 1}])
    assert "in 0 scenarios no request failed" in chaos_summary(noted)


def test_a_seed_draws_the_same_faults_again() -> None:
    """Each at most once, and only short ones."""
    drawn = draw(42, 5)
    assert drawn == draw(42, 5)
    assert len({fault.name for fault in drawn}) == 5
    assert draw(43, 5) != drawn
    assert all(fault.seconds < 4 for fault in drawn)


def test_the_rows_of_the_plan_have_different_names() -> None:
    """Goals are found by name, and each goal has its row."""
    names = [trial.fault.name for trial in plan()]
    assert len(names) == len(set(names))
    assert GOALS.keys() | SILENT <= {fault.name for fault in FAULTS}


# What the run and its faults do where something is not as it should be


def test_connections_that_cannot_be_counted_fail_the_row() -> None:
    """An error in the counting thread is raised where the counting ends."""
    cloud = Mock()
    cloud.traffic.side_effect = [{"pooler": 0}, RuntimeError("no answer"), {"pooler": 0}]
    with pytest.raises(RuntimeError, match="no answer"), Connects(cloud).counted(True):
        processes.wait_until(lambda: cloud.traffic.call_count > 1, 30, "the second look")


def test_connections_are_counted_from_the_first_moment_to_the_last() -> None:
    """Earlier ones do not count; those after the thread's last read do."""
    cloud = Mock()
    connects = Connects(cloud)
    cloud.traffic.return_value = {"pooler": 40}
    with connects.counted(True):
        cloud.traffic.return_value = {"pooler": 47}
    cloud.traffic.return_value = {"pooler": 90}
    assert connects.most() == 7


def test_connections_of_a_row_that_does_not_ask_are_not_counted() -> None:
    """The cloud is not queried, and the count is 0."""
    cloud = Mock()
    connects = Connects(cloud)
    with connects.counted(False):
        pass
    assert connects.most() == 0
    cloud.traffic.assert_not_called()


@pytest.mark.parametrize(
    ("looks", "most"),
    [
        ([(0.0, 10), (0.5, 14), (1.0, 20), (1.5, 21), (2.0, 21)], 10),
        ([(0.0, 0), (0.9, 5), (1.05, 9)], 9),  # between two reads it may be too high
        ([(0.0, 0), (1.0, 3), (2.0, 3), (2.6, 8), (2.8, 10)], 7),  # the last second is incomplete
        ([(0.0, 0), (3.0, 6)], 6),  # a read came late
    ],
)
def test_the_second_with_the_most_connections_counts(
    looks: list[tuple[float, int]], most: int
) -> None:
    """Wherever that second begins."""
    connects = Connects(Mock())
    connects._samples = looks
    assert connects.most() == most


def test_a_frozen_environment_that_ends_leaves_none_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first of three has ended, so the second is frozen, and thawed again."""
    gone = psutil.NoSuchProcess(1)
    ended, second, third = Mock(), Mock(), Mock()
    ended.suspend.side_effect = ended.resume.side_effect = gone
    monkeypatch.setattr(faults, "busy_environments", lambda _cloud: [ended, second, third])
    with faults.freeze_half_of_the_busy(Mock()):
        second.suspend.assert_called_once()
        second.resume.assert_not_called()
    second.resume.assert_called_once()
    third.suspend.assert_not_called()


def test_only_a_refused_login_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pooler that is stopped or full has not seen the new password."""
    answers = ["connection refused", "no more connections allowed", "SASL authentication failed"]
    left = [psycopg.OperationalError(text) for text in answers]
    login = Mock(side_effect=left)
    monkeypatch.setattr(faults, "_login_at", login)
    faults._wait_for_refusal(Mock(), "127.0.0.1", {})
    assert login.call_count == len(answers)


def test_a_pooler_task_that_runs_nothing_cannot_be_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the row would have no fault."""
    with subprocess.Popen(["sleep", "5"]) as task:
        monkeypatch.setattr(faults, "_running_tasks", lambda _cloud: [{"pid": task.pid}])
        with pytest.raises(RuntimeError, match="no PgBouncer"):
            faults.kill_one_pooler_task(Mock()).__enter__()
        task.kill()


def test_a_pooler_task_that_hangs_is_stopped_and_may_end_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its supervisor ends one, as intended; the other one continues."""
    ended, other = Mock(), Mock()
    ended.resume.side_effect = psutil.NoSuchProcess(1)
    monkeypatch.setattr(faults, "_poolers_of_one_task", lambda _cloud: [ended, other])
    cloud = Mock()
    cloud.status.return_value = {"functions": {"ledger": 3, "users": 0, "rotate": 1}}
    with faults.stop_one_pooler_task(cloud):
        ended.suspend.assert_called_once()
        other.resume.assert_not_called()
        cloud.environments.assert_called_once_with("ledger", 3 + faults.FRESH)
    other.resume.assert_called_once()


def test_a_program_is_known_where_a_loader_starts_it() -> None:
    """PgBouncer from Debian's packages runs under the name of its loader."""
    script = "print(flush=True); input()"  # with its command line in place when it has printed
    command = [sys.executable, "-c", script, "/usr/sbin/pgbouncer"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        programs = ("pgbouncer", "postgres")
        seen = [faults._runs(psutil.Process(process.pid), program) for program in programs]
        process.kill()
    assert seen == [True, False]
