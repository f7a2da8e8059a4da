"""The ledger behind the load: its tables, and the audit of what is in them."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import psycopg

Kind = Literal["read", "transfer", "note"]
Outcome = Literal["done", "not done", "unknown", "no answer"]

ACCOUNTS: Final = 50
OPENING_BALANCE: Final = 1_000

SCHEMA: Final = """
DROP SCHEMA IF EXISTS ledger CASCADE;
CREATE SCHEMA ledger;
CREATE TABLE ledger.accounts (id int PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE ledger.transfers (
    key uuid PRIMARY KEY,
    source int NOT NULL,
    target int NOT NULL,
    amount bigint NOT NULL
);
CREATE TABLE ledger.movements (key uuid NOT NULL, account int NOT NULL, amount bigint NOT NULL);
CREATE TABLE ledger.notes (text text NOT NULL);
GRANT USAGE ON SCHEMA ledger TO lambda_pg_app;
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA ledger TO lambda_pg_app;
"""


@dataclass(frozen=True)
class Request:
    """What a client saw of one request. Seconds; `started` counts from the start of the load.

    `untimed`: it is slow on purpose, so it is audited and not timed. `already`: the answer to a
    transfer says that an earlier run had carried it out.
    """

    kind: Kind
    key: str
    started: float
    seconds: float
    status: int
    retry_after: bool
    outcome: Outcome
    untimed: bool = False
    already: bool = False

    @property
    def ended(self) -> float:
        """When the answer arrived."""
        return self.started + self.seconds

    @property
    def failed(self) -> bool:
        """Whether the client did not get a success."""
        return self.outcome != "done"

    @property
    def is_unavailable(self) -> bool:
        """Whether the answer is 503 with Retry-After."""
        return self.status == 503 and self.retry_after


@dataclass(frozen=True)
class Books:
    """What the database has: the sum of all balances, and how often it has each key.

    `unbalanced`: accounts whose balance is not the sum of their movements.
    """

    total: int
    transfers: Counter[str]
    movements: Counter[str]
    unbalanced: int
    notes: Counter[str]


WRONG: Final = ("lost", "duplicated", "hidden", "half_done", "off_balance")
"""The findings that must be 0."""


@dataclass(frozen=True)
class Findings:
    """What the audit found, as counts of writes.

    `lost`: acknowledged, but missing. `duplicated`: present more than once, or sent once and run
    twice. `hidden`: present, but the client got the answer "not done". `half_done`: a transfer
    without its two movements, or movements without their transfer. `off_balance`: the change of
    the sum of all balances, plus the number of unbalanced accounts.
    """

    acknowledged: int
    lost: int
    duplicated: int
    hidden: int
    half_done: int
    off_balance: int
    unknown_but_done: int

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not any(getattr(self, name) for name in WRONG)


def open_books(dsn: str) -> None:
    """Drop and create the tables in the database `app`."""
    with psycopg.connect(dsn, dbname="app", autocommit=True) as connection:
        connection.execute(SCHEMA)
        connection.execute(
            "INSERT INTO ledger.accounts SELECT n, %s FROM generate_series(1, %s) AS n",
            [OPENING_BALANCE, ACCOUNTS],
        )


def read_books(dsn: str) -> Books:
    """Read everything in one snapshot."""
    with psycopg.connect(dsn, dbname="app") as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        total = connection.execute("SELECT sum(balance) FROM ledger.accounts").fetchone()
        transfers = connection.execute("SELECT key::text FROM ledger.transfers").fetchall()
        movements = connection.execute("SELECT key::text FROM ledger.movements").fetchall()
        unbalanced = connection.execute(
            "SELECT count(*) FROM ledger.accounts AS a WHERE balance <> %s + (SELECT"
            " coalesce(sum(amount), 0) FROM ledger.movements AS m WHERE m.account = a.id)",
            [OPENING_BALANCE],
        ).fetchone()
        notes = connection.execute("SELECT text FROM ledger.notes").fetchall()
    return Books(
        total=int(total[0]) if total else 0,
        transfers=Counter(key for (key,) in transfers),
        movements=Counter(key for (key,) in movements),
        unbalanced=int(unbalanced[0]) if unbalanced else 0,
        notes=Counter(text for (text,) in notes),
    )


def audit(requests: Iterable[Request], books: Books) -> Findings:
    """Compare all writes since the books were opened with the books; a key may be sent repeatedly.

    A write is acknowledged if one outcome of its key is "done", refused if all are "not done".
    """
    outcomes, run_twice = _outcomes(requests)
    present = books.transfers + books.notes
    acknowledged = {key for key, seen in outcomes.items() if "done" in seen}
    refused = {key for key, seen in outcomes.items() if seen == {"not done"}}
    moved = books.transfers.keys() | books.movements.keys()
    unknown = outcomes.keys() - acknowledged - refused
    off = books.total - ACCOUNTS * OPENING_BALANCE
    return Findings(
        acknowledged=len(acknowledged),
        lost=len(acknowledged - present.keys()),
        duplicated=_more_than(1, present) + _more_than(2, books.movements) + run_twice,
        hidden=len(refused & present.keys()) + len(present.keys() - outcomes.keys()),
        half_done=sum(books.movements[key] < 2 or not books.transfers[key] for key in moved),
        off_balance=abs(off) + books.unbalanced,
        unknown_but_done=len(unknown & present.keys()),
    )


def _outcomes(requests: Iterable[Request]) -> tuple[dict[str, set[Outcome]], int]:
    """Collect the outcomes of each key; count the keys that ran before they were sent again."""
    outcomes: dict[str, set[Outcome]] = {}
    run_twice = 0
    for request in requests:
        if request.kind != "read":
            run_twice += request.already and request.key not in outcomes
            outcomes.setdefault(request.key, set()).add(request.outcome)
    return outcomes, run_twice


def _more_than(times: int, counts: Counter[str]) -> int:
    """Count the keys that are present more often than `times`."""
    return sum(count > times for count in counts.values())
