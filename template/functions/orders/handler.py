"""Orders. Row-level security shows each caller the caller's own orders only."""

from typing import Any

from lambda_pg import Database
from lambda_pg.http_api import Answer, Problem, Request, change_once, http_handler
from psycopg import Connection
from psycopg.rows import DictRow, dict_row

db = Database.from_env(row_factory=dict_row)  # opens nothing yet


def list_orders(request: Request) -> Answer:
    query = "SELECT id, item FROM orders ORDER BY id LIMIT 100"
    return Answer(200, db.execute(query, claims=request.claims, idempotent=True).fetchall())


def create_order(request: Request) -> Answer:
    item = item_of(request.json())

    def insert(connection: Connection[DictRow]) -> Answer:
        query = "INSERT INTO orders (item) VALUES (%s) RETURNING id, item"
        return Answer(201, connection.execute(query, (item,)).fetchone())

    return change_once(db, request, insert)  # once for each Idempotency-Key


def get_order(request: Request) -> Answer:
    query, claims = "SELECT id, item FROM orders WHERE id = %s", request.claims
    order = db.execute(query, (request.uuid("id"),), claims=claims, idempotent=True).fetchone()
    if order is None:  # or it is another caller's
        raise Problem("not-found", "There is no such order.")
    return Answer(200, order)


def item_of(body: Any) -> str:
    item = body.get("item") if isinstance(body, dict) else None
    if isinstance(item, str) and 1 <= len(item) <= 200 and "\0" not in item:
        return item
    errors = [{"field": "item", "detail": "must be 1 to 200 characters without NUL"}]
    raise Problem("invalid-fields", 'The body must be {"item": "..."}.', errors=errors)


routes = {"GET /orders": list_orders, "POST /orders": create_order, "GET /orders/{id}": get_order}
handler = db.bind_lambda_context(http_handler(routes))
