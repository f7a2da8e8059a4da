"""The API of orders, on a real PostgreSQL."""

import importlib
import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from lambda_pg.testing import LambdaContext

Call = Callable[..., tuple[int, Any]]


@pytest.fixture
def call(
    lambda_pg_tables: None,
    lambda_context: LambdaContext,
) -> Call:
    """Return what sends one request to the handler, as the API does; it returns status and body."""
    module = importlib.import_module("functions.orders.handler")  # it reads the environment now

    def request(
        caller: str, route: str, body: object = None, order: str = "", key: str | None = None
    ) -> tuple[int, Any]:
        method, path = route.split()
        event: dict[str, Any] = {
            "version": "2.0",
            "routeKey": route,
            "rawPath": path.replace("{id}", order),
            "pathParameters": {"id": order},
            "headers": {"content-type": "application/json"},
            "requestContext": {
                "http": {"method": method},
                "authorizer": {"jwt": {"claims": {"sub": caller}}},
            },
            "body": json.dumps(body),
        }
        if key is not None:
            event["headers"] |= {"idempotency-key": key}
        answer = module.handler(event, lambda_context)
        return answer["statusCode"], json.loads(answer["body"])

    return request


def test_an_order_can_be_read(call: Call) -> None:
    """By the caller who has created it."""
    ada = str(uuid4())
    status, order = call(ada, "POST /orders", {"item": "a lamp"})
    assert (status, order["item"]) == (201, "a lamp")
    assert call(ada, "GET /orders/{id}", order=order["id"]) == (200, order)
    assert call(ada, "GET /orders") == (200, [order])


def test_an_order_is_nobody_elses(call: Call) -> None:
    """Row-level security hides it."""
    _, order = call(str(uuid4()), "POST /orders", {"item": "a lamp"})
    bob = str(uuid4())
    assert call(bob, "GET /orders") == (200, [])
    assert call(bob, "GET /orders/{id}", order=order["id"])[0] == 404


def test_a_repeated_order_is_one_order(call: Call) -> None:
    """The Idempotency-Key is the same, so the answer is, too."""
    ada = str(uuid4())
    first = call(ada, "POST /orders", {"item": "a lamp"}, key="one")
    assert call(ada, "POST /orders", {"item": "a lamp"}, key="one") == first
    assert call(ada, "GET /orders") == (200, [first[1]])


def test_an_order_without_an_item_is_refused(call: Call) -> None:
    """Before the database is asked."""
    assert call(str(uuid4()), "POST /orders", {})[0] == 422
