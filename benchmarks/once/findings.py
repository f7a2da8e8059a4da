"""What an audit of orders finds. Pure: no I/O, no clock."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from benchmarks.once.audit import Change
from benchmarks.once.orders import Order
from lambda_pg_cdk.local.http.caller import Answer

REPLAYED: Final = "idempotent-replayed"
APART: Final = frozenset({"date", "apigw-requestid", REPLAYED})
"""Headers in which a replay differs from the first answer."""

WRONG: Final[Mapping[str, str]] = {
    "lost": "acknowledged, but not changed",
    "twice": "changed more than once",
    "unanswered": "no success until the end",
    "refused": "answered with a status that no repeat may get",
    "unequal": "answers to one order that differ",
    "untrue": "answers that are not what the database has",
    "unmarked": "more than one answer to an order without Idempotent-Replayed",
    "unpaired": "transactions with a change and no key, or with a key and no change",
    "broken": "answers 500, more than environments were killed",
}
"""The findings that must be 0."""


@dataclass(frozen=True)
class Findings:
    """Counts of orders, except for `unpaired` (transactions) and `broken` (answers).

    `lost_answers`: orders whose first received answer was a replay: the change was committed, and
    its answer was lost.
    """

    orders: int
    acknowledged: int
    lost_answers: int
    lost: int
    twice: int
    unanswered: int
    refused: int
    unequal: int
    untrue: int
    unmarked: int
    unpaired: int
    broken: int

    @property
    def wrong(self) -> dict[str, int]:
        """The counts that are not 0 and must be."""
        return {name: count for name, count in asdict(self).items() if count and name in WRONG}


def audit(
    orders: Sequence[Order],
    changes: Sequence[Change],
    stored: Sequence[int],
    *,
    errors: int = 0,
    killed: int = 0,
) -> Findings:
    """Compare orders with what was changed.

    `stored`: the transactions that stored a key. `errors`: answers 500. `killed`: environments
    that were killed, each of which may be one of these answers.
    """
    times = Counter(change.row["name"] for change in changes)
    rows = {change.row["name"]: change.row for change in changes}
    transactions = Counter(change.transaction for change in changes)
    return Findings(
        orders=len(orders),
        acknowledged=sum(order.acknowledged for order in orders),
        lost_answers=sum(_is_replay(order.answers[0]) for order in orders if order.answers),
        lost=sum(order.acknowledged and not times[order.label] for order in orders),
        twice=sum(times[order.label] > 1 for order in orders),
        unanswered=sum(not order.acknowledged and not order.refusals for order in orders),
        refused=sum(bool(order.refusals) for order in orders),
        unequal=sum(len({_content(answer) for answer in order.answers}) > 1 for order in orders),
        untrue=sum(not _is_true(order, rows.get(order.label)) for order in orders),
        unmarked=sum(sum(not _is_replay(each) for each in order.answers) > 1 for order in orders),
        unpaired=_difference(transactions, Counter(stored)),
        broken=max(0, errors - killed),
    )


def _is_replay(answer: Answer) -> bool:
    return answer.headers.get(REPLAYED) == "true"


def _content(answer: Answer) -> tuple[int, str, tuple[tuple[str, str], ...]]:
    """Return what must be the same in each answer to an order."""
    headers = sorted((k, v) for k, v in answer.headers.items() if k not in APART)
    return answer.status, answer.body, tuple(headers)


def _is_true(order: Order, row: Mapping[str, Any] | None) -> bool:
    """Tell whether the answers show the row as the change has left it; a lost change is `lost`."""
    if row is None:
        return True
    shown = {"id": row["id"], "name": row["name"]}
    tag = f'"{row["version"]}"'
    return all(
        answer.json().items() >= shown.items() and answer.headers.get("etag") == tag
        for answer in order.answers
    )


def _difference(one: Counter[int], other: Counter[int]) -> int:
    return sum(((one - other) + (other - one)).values())
