"""A Lambda handler from functions that take a request and return an answer."""

from collections.abc import Callable, Mapping
from typing import Any

from lambda_pg.http_api.answers import Answer
from lambda_pg.http_api.errors import answer_to
from lambda_pg.http_api.problems import Problem
from lambda_pg.http_api.request import Request

Served = Callable[[Request], Answer]
"""A function that serves the requests of a route."""


def http_handler(
    routes: Mapping[str, Served] | None = None, /, **methods: Served
) -> Callable[[Mapping[str, Any], object], dict[str, Any]]:
    """Return a handler of an HTTP API's events that serves each request by its function.

    Keyword arguments are methods, for a function with one path: `http_handler(POST=create)`.
    `routes` are those of the stack, for a function with several paths:
    `{"GET /notes/{id}": read, "POST /notes": create}`.
    Another method is answered 405; errors become answers as in answer_to().
    """
    table = {**(routes or {}), **methods}

    def handler(event: Mapping[str, Any], _: object) -> dict[str, Any]:
        try:
            request = Request.of(event)
            answer = _served(table, request)(request)
        except Exception as error:  # noqa: BLE001 - answer_to raises again what is a defect
            answer = answer_to(error, event["requestContext"].get("requestId", ""))
        return answer.response()

    return handler


def _served(table: Mapping[str, Served], request: Request) -> Served:
    """Return the function of a request. Raises Problem: 405 with the methods that there are."""
    found = table.get(f"{request.method} {request.route}") or table.get(request.method)
    if found is not None:
        return found
    allowed = ", ".join(sorted(_methods(table, request.route)))
    detail = f"{request.method} is not allowed here; allowed are {allowed}."
    raise Problem("method-not-allowed", detail, headers={"Allow": allowed})


def _methods(table: Mapping[str, Served], route: str) -> set[str]:
    """Return the methods of a path."""
    split = (name.partition(" ") for name in table)
    return {method for method, _, path in split if path in {"", route}}
