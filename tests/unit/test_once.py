"""The audit of changes with keys finds each error that it is there for; what is drawn by a seed."""

import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.once.audit import Change
from benchmarks.once.findings import WRONG, audit
from benchmarks.once.orders import Order, drawn
from benchmarks.once.run import Outcome, row, shortfalls
from benchmarks.once.sabotage import PHASES, WEIGHTS, Strike, deck
from benchmarks.tables import once_table
from lambda_pg_cdk.local.http.caller import Answer


def answer(label: str = "one", *, status: int = 201, replayed: bool = False, **more: str) -> Answer:
    """Make an answer to an order, as the database has it."""
    headers = {"etag": '"1"', "apigw-requestid": secrets.token_hex(4)} | more
    if replayed:
        headers["idempotent-replayed"] = "true"
    return Answer(status, headers, f'{{"id": "{label}-id", "name": "{label}"}}')


def order(label: str, *answers: Answer) -> Order:
    """Make an order with the answers that its clients got."""
    return Order(label, "create", "a subject", "/users", "a key", answers=list(answers))


def change(label: str, transaction: int) -> Change:
    """Make a change that was recorded."""
    return Change(transaction, "INSERT", {"id": f"{label}-id", "name": label, "version": 1})


ORDERS = [
    order("one", answer("one"), answer("one", replayed=True)),
    order("two", answer("two", replayed=True), answer("two", replayed=True)),
]
CHANGES = [change("one", 1), change("two", 2)]
STORED = [1, 2]


def test_an_order_that_was_applied_once_is_right() -> None:
    """Also one whose first answer was lost: that is counted, and is no error."""
    found = audit(ORDERS, CHANGES, STORED, errors=2, killed=2)
    assert found.wrong == {}
    assert (found.orders, found.acknowledged, found.lost_answers) == (2, 2, 1)


def orders(*answers: Answer) -> list[Order]:
    """Return the orders with other answers to the first one."""
    return [order("one", *answers), ORDERS[1]]


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({"changes": CHANGES[1:], "stored": [2]}, {"lost": 1}),
        ({"changes": [*CHANGES, change("one", 3)], "stored": [1, 2, 3]}, {"twice": 1}),
        ({"changes": [*CHANGES, change("one", 1)], "stored": [1, 2, 1]}, {"twice": 1}),
        ({"changes": [*CHANGES, change("one", 3)]}, {"twice": 1, "unpaired": 1}),
        ({"orders": orders()}, {"unanswered": 1}),
        ({"orders": orders(answer(), answer(status=200, replayed=True))}, {"unequal": 1}),
        ({"orders": orders(answer(), answer(location="x", replayed=True))}, {"unequal": 1}),
        ({"orders": orders(answer("two"))}, {"untrue": 1}),
        ({"orders": orders(answer(etag='"2"'))}, {"untrue": 1}),
        ({"orders": orders(answer(), answer())}, {"unmarked": 1}),
        ({"stored": [1]}, {"unpaired": 1}),
        ({"stored": [1, 2, 3]}, {"unpaired": 1}),
        ({"errors": 3, "killed": 1}, {"broken": 2}),
    ],
)
def test_what_is_wrong_is_found(changed: dict[str, Any], wrong: dict[str, int]) -> None:
    """Each error counts under its name, and has a meaning for the report."""
    right: dict[str, Any] = {"orders": ORDERS, "changes": CHANGES, "stored": STORED}
    assert audit(**(right | changed)).wrong == wrong
    assert wrong.keys() <= WRONG.keys()


def test_a_refusal_is_found() -> None:
    """412 for an edit that was repeated, or 422 for a key that is the same."""
    refused = replace(order("one"), refusals=[412])
    assert audit([refused, ORDERS[1]], CHANGES, STORED).wrong == {"refused": 1}


def test_a_seed_draws_the_same_orders_and_strikes() -> None:
    """A run can be repeated."""
    one, same, other = (drawn(40, seed) for seed in (1, 1, 2))
    assert one == same != other
    assert deck(1, 30) == deck(1, 30)


def test_orders_share_keys_but_never_their_place() -> None:
    """Subject, method, path and key name one order; each key is used by several orders."""
    plan = drawn(400, 5)
    places = Counter((each.subject, each.method, each.path, each.key) for each in plan.orders)
    assert set(places.values()) == {1}
    assert Counter(each.key for each in plan.orders).most_common(1)[0][1] > 1
    assert {each.kind for each in plan.orders} == {"create", "rename", "edit"}
    edited = [each.path for each in plan.orders if each.kind == "edit"]
    assert len(edited) == len(set(edited))


def test_a_deck_has_each_action_in_each_phase() -> None:
    """As soon as it is large enough."""
    assert set(deck(3, 18)) == {Strike(action, phase) for action in WEIGHTS for phase in PHASES}
    assert len(deck(3, 50)) == 50


def outcome(**changed: Any) -> Outcome:
    """Make a run without an error."""
    found = replace(audit(ORDERS, CHANGES, STORED), **{"lost_answers": 12, **changed})
    strikes = Counter({Strike("functions cut off", "in"): 3})
    return Outcome(found, Counter({201: 4, 0: 1}), strikes, Counter(), 0, 1.0)


def result(measured: Outcome, control: Outcome) -> dict[str, Any]:
    """Make a result of two runs."""
    return {"rows": [row("lambda-pg", measured), row("control", control)], "clients": 2, "seed": 7}


@pytest.mark.parametrize(
    ("measured", "control", "reason"),
    [
        (outcome, lambda: outcome(twice=3), None),
        (lambda: outcome(twice=1), lambda: outcome(twice=3), "1 twice: changed more than once"),
        (lambda: outcome(unpaired=1), lambda: outcome(twice=3), "1 unpaired"),
        (lambda: outcome(lost_answers=9), lambda: outcome(twice=3), "only 9 answers were lost"),
        (outcome, outcome, "the control changed nothing twice"),
    ],
)
def test_a_broken_promise_is_named(
    measured: Callable[[], Outcome], control: Callable[[], Outcome], reason: str | None
) -> None:
    """So is a run that proves nothing."""
    broken = shortfalls(result(measured(), control()))
    assert [promise[: len(reason or "")] for promise in broken] == ([reason] if reason else [])


def test_the_table_shows_orders_and_strikes() -> None:
    """The control has the same line, and each action its phases."""
    origin = {"machine": {"cores": 2, "processor": "a"}, "date": "2026-01-02", "caveats": ["x"]}
    origin |= {"versions": {"postgresql": "17", "pgbouncer": "1", "python": "3"}, "command": "make"}
    drawn_table = once_table(origin | result(outcome(), outcome(twice=3)))
    assert "| **lambda-pg** | 2 | 5 | 12 | 2 | 0 | 0 | 0 |" in drawn_table
    assert "forgets every key | 2 | 5 | 12 | 2 | 0 | 3 | 0 |" in drawn_table
    assert "| functions cut off | 0 | 3 | 0 | 0 |" in drawn_table
    assert "1 without an answer, 4 201" in drawn_table
