"""Build payload format 2.0 events as API Gateway does, and read what functions return."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

from lambda_pg_cdk.local.deployment.deployed import Api
from lambda_pg_cdk.local.http_api.routes import Match

ACCOUNT = "000000000000"


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request as it arrived."""

    id: str
    method: str
    path: str  # without the query, still encoded
    query: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    source: str
    protocol: str = "HTTP/1.1"
    time: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """One response as it leaves."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes

    @classmethod
    def message(cls, status: int, text: str, *more: tuple[str, str]) -> "HttpResponse":
        """Answer as API Gateway itself does."""
        body = json.dumps({"message": text}, separators=(",", ":")).encode()
        return cls(status, [("content-type", "application/json"), *more], body)


class MalformedResponseError(ValueError):
    """The function returned something that API Gateway cannot send."""


def build_event(
    request: HttpRequest, api: Api, match: Match, claims: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the event for a route's function; `claims` are those of a verified token."""
    text, encoded = _body(request)
    headers = _joined(request.headers)
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": match.route.key,
        "rawPath": request.path,
        "rawQueryString": request.query,
        "headers": headers,
        "requestContext": _context(request, api, match, claims, headers),
        "isBase64Encoded": encoded,
    }
    cookies = [value for name, value in request.headers if name.lower() == "cookie"]
    optional = {
        "cookies": [part for value in cookies for part in value.split("; ") if part],
        "queryStringParameters": _query(request.query),
        "pathParameters": dict(match.parameters),
        "body": text,
    }
    return event | {name: value for name, value in optional.items() if value}


def _context(
    request: HttpRequest,
    api: Api,
    match: Match,
    claims: Mapping[str, Any] | None,
    headers: Mapping[str, str],
) -> dict[str, Any]:
    host = headers.get("host", "").partition(":")[0]
    context: dict[str, Any] = {
        "accountId": ACCOUNT,
        "apiId": api.id,
        "domainName": host,
        "domainPrefix": host.split(".")[0],
        "http": {
            "method": request.method,
            "path": request.path,
            "protocol": request.protocol,
            "sourceIp": request.source,
            "userAgent": headers.get("user-agent", ""),
        },
        "requestId": request.id,
        "routeKey": match.route.key,
        "stage": api.stage,
        "time": request.time.strftime("%d/%b/%Y:%H:%M:%S +0000"),
        "timeEpoch": int(request.time.timestamp() * 1000),
    }
    if claims is not None:
        context["authorizer"] = {
            "jwt": {
                "claims": {name: claim_text(value) for name, value in claims.items()},
                "scopes": list(match.route.scopes) or None,
            }
        }
    return context


def claim_text(value: Any) -> str:
    """Format a claim as API Gateway does: all claims are text, a list is `[a b]`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{' '.join(claim_text(item) for item in value)}]"
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value)


def _joined(headers: Sequence[tuple[str, str]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in headers:
        key = name.lower()
        if key != "cookie":
            joined[key] = f"{joined[key]},{value}" if key in joined else value
    return joined


def _query(query: str) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined


_TEXT_TYPES = ("text/", "application/json", "application/javascript", "application/xml")


def _body(request: HttpRequest) -> tuple[str, bool]:
    kinds = [value for name, value in request.headers if name.lower() == "content-type"]
    kind = (kinds or [""])[0].lower()
    textual = not kind or kind.startswith(_TEXT_TYPES) or "+json" in kind or "+xml" in kind
    if textual:
        try:
            return request.body.decode(), False
        except UnicodeDecodeError:
            pass
    return base64.b64encode(request.body).decode(), bool(request.body)


def read_response(payload: bytes) -> HttpResponse:
    """Turn the return value of a function into a response.

    With `statusCode` it is a response; without, all of it is the body, as JSON, with status 200.
    Raises `MalformedResponseError` for a value that API Gateway answers with 500.
    """
    try:
        result = json.loads(payload)
    except ValueError as error:
        raise MalformedResponseError("not JSON") from error
    if not isinstance(result, dict) or "statusCode" not in result:
        body = result if isinstance(result, str) else json.dumps(result, separators=(",", ":"))
        return HttpResponse(200, [("content-type", "application/json")], body.encode())
    return HttpResponse(_status(result), _headers(result), _response_body(result))


def _status(result: Mapping[str, Any]) -> int:
    try:
        status = int(result["statusCode"])
    except (TypeError, ValueError) as error:
        raise MalformedResponseError(f"statusCode is {result['statusCode']!r}") from error
    if not 100 <= status <= 599:
        raise MalformedResponseError(f"statusCode is {status}")
    return status


def _headers(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    given = result.get("headers") or {}
    cookies = result.get("cookies") or []
    if not isinstance(given, dict) or not isinstance(cookies, list):
        raise MalformedResponseError("headers must be an object, cookies a list")
    headers = [(str(name).lower(), str(value)) for name, value in given.items()]
    if not any(name == "content-type" for name, _ in headers):
        headers.append(("content-type", "text/plain;charset=UTF-8"))
    return headers + [("set-cookie", str(cookie)) for cookie in cookies]


def _response_body(result: Mapping[str, Any]) -> bytes:
    body = result.get("body")
    if body is None:
        return b""
    if not isinstance(body, str):
        raise MalformedResponseError(f"body is a {type(body).__name__}, not text")
    if not result.get("isBase64Encoded"):
        return body.encode()
    try:
        return base64.b64decode(body, validate=True)
    except ValueError as error:
        raise MalformedResponseError("body is not base64") from error
