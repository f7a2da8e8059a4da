"""Orders. Row-level security shows each caller the caller's own orders only."""

import uuid
from typing import Annotated, Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.event_handler.exceptions import NotFoundError
from aws_lambda_powertools.event_handler.openapi.params import Body
from aws_lambda_powertools.utilities.typing import LambdaContext
from lambda_pg import Database, DatabaseUnavailableError
from psycopg.rows import dict_row

logger = Logger()
app = APIGatewayHttpResolver(enable_validation=True)
db = Database.from_env(row_factory=dict_row)  # opens nothing yet

Item = Annotated[str, Body(embed=True, min_length=1, max_length=200)]


@app.get("/orders")
def list_orders() -> list[dict[str, Any]]:
    query = "SELECT id, item FROM orders ORDER BY id LIMIT 100"
    return db.execute(query, claims=caller(), idempotent=True).fetchall()


@app.post("/orders")
def create_order(item: Item) -> dict[str, Any] | None:
    query = "INSERT INTO orders (item) VALUES (%s) RETURNING id, item"
    return db.execute(query, (item,), claims=caller()).fetchone()


@app.get("/orders/<order_id>")
def get_order(order_id: uuid.UUID) -> dict[str, Any]:
    query = "SELECT id, item FROM orders WHERE id = %s"
    row = db.execute(query, (order_id,), claims=caller(), idempotent=True).fetchone()
    if row is None:  # or it is another caller's
        raise NotFoundError("no such order")
    return row


@app.exception_handler(DatabaseUnavailableError)
def unavailable(error: DatabaseUnavailableError) -> Response[dict[str, str]]:
    logger.warning("database unavailable", reason=str(error))
    headers = {"Retry-After": str(max(1, round(error.retry_after)))}
    return Response(503, "application/json", {"message": "Try again."}, headers)


def caller() -> dict[str, str]:
    """Return the claims for row-level security, from the token that the API has verified."""
    return {"sub": app.current_event["requestContext"]["authorizer"]["jwt"]["claims"]["sub"]}


@logger.inject_lambda_context
@db.bind_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    return app.resolve(event, context)
