"""A ledger: accounts, transfers with idempotency keys, and notes without.

An answer 503 says whether the request certainly did not run ("not done") or may have run
("unknown"). In both cases the client may repeat a transfer with its key.
"""

import json
import time
from typing import Any

from lambda_pg import CommitOutcomeUnknownError, Database, DatabaseUnavailableError
from psycopg import Connection
from psycopg.rows import DictRow, dict_row

db = Database.from_env(row_factory=dict_row)

ADD = "INSERT INTO ledger.transfers (key, source, target, amount) VALUES (%s, %s, %s, %s)"
FOUND = "SELECT key::text, source, target, amount FROM ledger.transfers WHERE key = %s"
MOVE = (
    "WITH moved AS (UPDATE ledger.accounts SET balance = balance + %(amount)s WHERE id = %(id)s)"
    " INSERT INTO ledger.movements (key, account, amount) VALUES (%(key)s, %(id)s, %(amount)s)"
)


def transfer(order: dict[str, Any]) -> DictRow | None:
    """Move an amount between two accounts, once for each key; return the first result.

    `new` in the result says whether this run moved it.
    """
    key, source, target, amount = (order[name] for name in ("key", "source", "target", "amount"))

    def work(connection: Connection[DictRow]) -> DictRow | None:
        added = connection.execute(f"{ADD} ON CONFLICT DO NOTHING", (key, source, target, amount))
        if added.rowcount:
            time.sleep(order.get("pause", 0))  # a slow function between its statements
            for account, change in sorted([(source, -amount), (target, amount)]):  # no deadlocks
                connection.execute(MOVE, {"key": key, "id": account, "amount": change})
        found = connection.execute(FOUND, (key,)).fetchone()
        return found and {**found, "new": bool(added.rowcount)}

    return db.run_transaction(work)


def note(order: dict[str, Any]) -> DictRow | None:
    """Write a note in autocommit; sent twice, it would be stored twice."""
    db.execute("INSERT INTO ledger.notes (text) VALUES (%s)", (order["text"],))
    return {"text": order["text"]}


def account(id: int) -> DictRow | None:  # noqa: A002 - the path's own name
    """Read an account."""
    query = "SELECT id, balance FROM ledger.accounts WHERE id = %s"
    return db.execute(query, (id,), idempotent=True).fetchone()


def serve(event: dict[str, Any]) -> DictRow | None:
    """Serve the request of the path; None for an account that does not exist."""
    path = event["rawPath"]
    if path.startswith("/ledger/accounts/"):
        return account(int(event["pathParameters"]["id"]))
    order = json.loads(event["body"])
    return transfer(order) if path == "/ledger/transfers" else note(order)


def unavailable(outcome: str, retry_after: float) -> dict[str, Any]:
    """Answer 503 with the outcome of the request."""
    return {
        "statusCode": 503,
        "headers": {"Retry-After": str(max(1, round(retry_after)))},
        "body": json.dumps({"outcome": outcome}),
    }


@db.bind_lambda_context
def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Serve one request of the HTTP API."""
    try:
        found = serve(event)
    except DatabaseUnavailableError as error:
        unknown = getattr(error, "may_have_run", False)
        print(json.dumps({"unavailable": repr(error), "cause": repr(error.__cause__)}))
        return unavailable("unknown" if unknown else "not done", error.retry_after)
    except CommitOutcomeUnknownError as error:
        print(json.dumps({"unknown": repr(error), "cause": repr(error.__cause__)}))
        return unavailable("unknown", 1)
    return {"statusCode": 200 if found else 404, "body": json.dumps(found)}
