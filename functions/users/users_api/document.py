"""The OpenAPI document of the sample API, and a page of Swagger UI that shows it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.event_handler.openapi import swagger_ui
from aws_lambda_powertools.event_handler.openapi.models import HTTPBearer
from lambda_pg.http_api.problems import CONTENT_TYPE, KINDS
from lambda_pg.http_api.rules import RULES, Rules
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from . import parts
from .models import Page, User, UserFields
from .parts import Schema

REFERENCE: Final = "#/components/schemas/{model}"

PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
}

PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>Users</title><style>{style}</style></head>
<body><div id="api"></div><script>{script}</script>
<script>SwaggerUIBundle({{dom_id: "#api", spec: {document}}})</script></body>
</html>
"""


@dataclass(frozen=True)
class Operation:
    """What the document says of a route beside Powertools' part: parameters and body."""

    name: str
    summary: str
    scope: str
    answers: Mapping[int, Schema]
    refusals: Sequence[str]
    """Names of problems."""
    headers: Sequence[Schema] = ()
    """Parameters in the header."""


def shows(model: type[BaseModel], description: str, headers: Schema) -> Schema:
    """Describe an answer that shows a model."""
    schema = {"$ref": REFERENCE.format(model=model.__name__)}
    content = {"application/json": {"schema": schema}}
    return {"description": description, "headers": headers, "content": content}


OPERATIONS: Final[Mapping[tuple[str, str], Operation]] = {
    ("/users", "get"): Operation(
        name="listUsers",
        summary="List the caller's users, in pages",
        scope="users:read",
        answers={200: shows(Page, "A page", {})},
        refusals=["invalid-fields"],
    ),
    ("/users", "post"): Operation(
        name="createUser",
        summary="Create a user",
        scope="users:write",
        answers={
            201: shows(
                User,
                "The new user",
                {
                    "ETag": parts.ETAG,
                    "Location": parts.LOCATION,
                    "Idempotent-Replayed": parts.REPLAYED,
                },
            )
        },
        refusals=["invalid-fields", *parts.OF_BODIES, *parts.OF_KEYS],
        headers=[parts.KEY],
    ),
    ("/users/{user_id}", "get"): Operation(
        name="getUser",
        summary="Read a user",
        scope="users:read",
        answers={
            200: shows(User, "The user", {"ETag": parts.ETAG}),
            304: {"description": "The client has this version", "headers": {"ETag": parts.ETAG}},
        },
        refusals=["invalid-fields", "not-found"],
        headers=[parts.IF_NONE_MATCH],
    ),
    ("/users/{user_id}", "patch"): Operation(
        name="renameUser",
        summary="Rename a user, if its version is one of If-Match",
        scope="users:write",
        answers={
            200: shows(
                User, "The user", {"ETag": parts.ETAG, "Idempotent-Replayed": parts.REPLAYED}
            )
        },
        refusals=[
            *("invalid-fields", "not-found"),
            *(*parts.OF_BODIES, *parts.OF_KEYS, *parts.OF_VERSIONS),
        ],
        headers=[parts.KEY, parts.IF_MATCH],
    ),
}
"""By path and method."""


def serve(app: APIGatewayHttpResolver) -> None:
    """Add the routes of the document and of the page."""

    @cache
    def document() -> str:
        return json.dumps(describe(app, RULES))

    @app.get("/openapi.json", include_in_schema=False)
    def show_document() -> Response[Any]:
        return Response(200, "application/json", document())

    @app.get("/swagger", include_in_schema=False, compress=True)
    def show_page() -> Response[Any]:
        return Response(200, "text/html; charset=utf-8", page(document()), PAGE_HEADERS)


def page(document: str) -> str:
    """Return a page that needs no other file."""
    folder = Path(swagger_ui.__file__).parent
    script = (folder / "swagger-ui-bundle.min.js").read_text(encoding="utf-8")
    style = (folder / "swagger-ui.min.css").read_text(encoding="utf-8")
    return PAGE.format(style=style, script=script, document=document.replace("</", "<\\/"))


def describe(app: APIGatewayHttpResolver, rules: Rules) -> dict[str, Any]:
    """Return the document: what Powertools knows of the routes, and what they answer."""
    text = app.get_openapi_json_schema(
        title="Users",
        version="1",
        description=f"Users, each owned by a token's subject. A body has at most {rules.max_body}"
        " bytes.",
        security_schemes={"token": HTTPBearer(bearerFormat="JWT")},
    )
    document: dict[str, Any] = json.loads(text)
    document["components"]["schemas"] = {**schemas(), **parts.SCHEMAS}
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            route.update(described(route, OPERATIONS[path, method], rules))
    return document


def schemas() -> Schema:
    """Return the schemas of the models."""
    _, found = models_json_schema(
        [(UserFields, "validation"), (User, "serialization"), (Page, "serialization")],
        ref_template=REFERENCE,
    )
    defined: Schema = found["$defs"]
    return defined


def described(route: Schema, operation: Operation, rules: Rules) -> Schema:
    """Return what replaces Powertools' description of a route."""
    answers = {**operation.answers, **refusals(operation, rules)}
    return {
        "operationId": operation.name,
        "summary": operation.summary,
        "security": [{"token": [operation.scope]}],
        "parameters": [
            *map(without_null, route.get("parameters", ())),
            *(with_rule(header, rules) for header in operation.headers),
        ],
        "responses": {str(status): answers[status] for status in sorted(answers)},
    }


def without_null(parameter: Schema) -> Schema:
    """Leave null out of a parameter's schema: what is not sent is absent, not null."""
    schema = dict(parameter["schema"])
    kinds = [kind for kind in schema.pop("anyOf", ()) if kind != {"type": "null"}]
    return {**parameter, "schema": {**schema, **(kinds[0] if kinds else {})}}


def with_rule(header: Schema, rules: Rules) -> Schema:
    """Say whether the stage requires a header."""
    required = {
        parts.KEY["name"]: rules.require_idempotency_key,
        parts.IF_MATCH["name"]: rules.require_if_match,
    }
    return {**header, "required": required.get(header["name"], False)}


def refusals(operation: Operation, rules: Rules) -> dict[int, Schema]:
    """Describe refusals by their status: those of the function, and API Gateway's."""
    absent = {
        "idempotency-key-missing": not rules.require_idempotency_key,
        "precondition-required": not rules.require_if_match,
    }
    by_status: dict[int, list[str]] = {status: [] for status in parts.GATEWAY}
    for name in (*parts.EVERYWHERE, *operation.refusals):
        if not absent.get(name):
            by_status.setdefault(int(KINDS[name].status), []).append(name)
    return {status: refusal(status, names, rules) for status, names in by_status.items()}


def refusal(status: int, names: Sequence[str], rules: Rules) -> Schema:
    """Describe the answers of one status."""
    reasons = [KINDS[name].title for name in names]
    content: dict[str, Any] = {}
    if names:
        types = [f"{rules.problem_types}#{name}" for name in names]
        narrowed = {"properties": {"type": {"enum": types}, "status": {"const": status}}}
        problem = {"$ref": REFERENCE.format(model="Problem")}
        content[CONTENT_TYPE] = {"schema": {"allOf": [problem, narrowed]}}
    if status in parts.GATEWAY:
        reasons.append(parts.GATEWAY[status])
        message = {"$ref": REFERENCE.format(model="Message")}
        content["application/json"] = {"schema": message}
    return {
        "description": ". ".join(reasons) + ".",
        "headers": parts.HEADERS.get(status, {}),
        "content": content,
    }
