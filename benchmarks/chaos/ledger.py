"""The ledger behind the load: its tables, and the audit: what is there, and what clients saw."""

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
    """What a client saw of one request; times are seconds, `started` from the load's beginning.

    `aside` says that it was made to be slow: it is audited, and its time means nothing. `already`:
    the answer to a transfer says that an earlier run had carried it out.
    """

    kind: Kind
    key: str
    started: float
    seconds: float
    status: int
    retry_after: bool
    outcome: Outcome
    aside: bool = False
    already: bool = False

    @property
    def ended(self) -> float:
        """When the answer was there."""
        return self.started + self.seconds


@dataclass(frozen=True)
class Books:
    """What the database has: the sum of all balances, and how often each key is there."""

    total: int
    transfers: Counter[str]
    movements: Counter[str]
    unbalanced: int
    notes: Counter[str]


WRONG: Final = ("lost", "duplicated", "hidden", "half_done", "off_balance")
"""The findings that have to be 0."""


@dataclass(frozen=True)
class Findings:
    """What the audit found.

    `lost`: acknowledged and not there. `duplicated`: there more than once, or run more than once
    by what was sent once. `hidden`: there, though
    its client was told "not done". `half_done`: a transfer without its two movements, or
    movements without their transfer. `off_balance`: what the sum of all balances has moved by, and
    accounts that their movements do not explain.
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
        """Tell whether nothing is wrong."""
        return not any(getattr(self, name) for name in WRONG)


def open_books(dsn: str) -> None:
    """Make the tables anew in the database `app`."""
    with psycopg.connect(dsn, dbname="app", autocommit=True) as connection:
        connection.execute(SCHEMA)
        connection.execute(
            "INSERT INTO ledger.accounts SELECT n, %s FROM generate_series(1, %s) AS n",
            [OPENING_BALANCE, ACCOUNTS],
        )


def read_books(dsn: str) -> Books:
    """Read what is there, all at one moment."""
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
    """Compare all requests since the books were opened with the books; a key may come again."""
    told: dict[str, set[Outcome]] = {}
    twice = 0
    for request in requests:
        if request.kind != "read":
            twice += request.already and request.key not in told  # nobody had sent it before
            told.setdefault(request.key, set()).add(request.outcome)
    there = books.transfers + books.notes
    acknowledged = {key for key, outcomes in told.items() if "done" in outcomes}
    refused = {key for key, outcomes in told.items() if outcomes == {"not done"}}
    known = acknowledged | refused
    keys = books.transfers.keys() | books.movements.keys()
    off = books.total - ACCOUNTS * OPENING_BALANCE
    return Findings(
        acknowledged=len(acknowledged),
        lost=sum(there[key] == 0 for key in acknowledged),
        duplicated=sum(count > 1 for count in there.values())
        + sum(count > 2 for count in books.movements.values())
        + twice,
        hidden=sum(there[key] > 0 for key in refused) + len(there.keys() - told.keys()),
        half_done=sum(books.movements[key] < 2 or not books.transfers[key] for key in keys),
        off_balance=abs(off) + books.unbalanced,
        unknown_but_done=sum(there[key] > 0 for key in told.keys() - known),
    )
