"""The API front end's pure parts: routes, events, responses, tokens, throttle, CORS."""

import json
import time
from typing import Any

import jwt
import pytest

from lambda_pg_cdk.local.deployment.deployed import Api, Cors, JwtAuthorizer, Route, Throttle
from lambda_pg_cdk.local.http_api.authorizer import granted_scopes, verify
from lambda_pg_cdk.local.http_api.cors import allowed_headers, preflight
from lambda_pg_cdk.local.http_api.events import (
    HttpRequest,
    MalformedResponseError,
    build_event,
    claim_text,
    read_response,
)
from lambda_pg_cdk.local.http_api.issuer import Issuer
from lambda_pg_cdk.local.http_api.routes import Match, find_route
from lambda_pg_cdk.local.http_api.throttle import Bucket
from tests.support.issuer import issuer_at

SUBJECT = "6f1c7a52-4f8e-4e0e-9a55-0b1c1a2b3c4d"


def route(key: str) -> Route:
    """Make a route to a function."""
    return Route(key, "f", "2.0", 30.0)


ROUTES = [
    route(key)
    for key in (
        "$default",
        "ANY /users",
        "GET /users",
        "ANY /users/{id}",
        "GET /users/me",
        "ANY /files/{rest+}",
        "GET /files/{name}",
    )
]


@pytest.mark.parametrize(
    ("method", "path", "key", "parameters"),
    [
        ("GET", "/users", "GET /users", {}),
        ("POST", "/users", "ANY /users", {}),
        ("PATCH", "/users/7", "ANY /users/{id}", {"id": "7"}),
        ("GET", "/users/a%20b", "ANY /users/{id}", {"id": "a b"}),
        ("GET", "/users/me", "GET /users/me", {}),
        ("GET", "/users/", "$default", {}),
        ("GET", "/users/7/more", "$default", {}),
        ("GET", "/files/a", "GET /files/{name}", {"name": "a"}),
        ("GET", "/files/a/b", "ANY /files/{rest+}", {"rest": "a/b"}),
        ("GET", "/nothing", "$default", {}),
    ],
)
def test_the_most_specific_route_is_taken(
    method: str, path: str, key: str, parameters: dict[str, str]
) -> None:
    """Literal before parameter before greedy before `$default`; a named method before ANY."""
    match = find_route(ROUTES, method, path)
    assert match is not None
    assert (match.route.key, match.parameters) == (key, parameters)


def test_without_a_default_an_unknown_path_has_no_route() -> None:
    """The front end answers 404 then."""
    assert find_route(ROUTES[1:], "GET", "/nothing") is None


def event(request: HttpRequest, claims: dict[str, Any] | None = None) -> dict[str, Any]:
    """Build the event of a request on a route with an id."""
    match = Match(route("ANY /users/{id}"), {"id": "7"})
    return build_event(request, Api("abc", "$default", ()), match, claims)


def request(**given: Any) -> HttpRequest:
    """Make a request."""
    values: dict[str, Any] = {
        "id": "r1",
        "method": "POST",
        "path": "/users/7",
        "query": "a=1&a=2&b=",
        "headers": [("Host", "h:1"), ("X-A", "1"), ("x-a", "2"), ("Cookie", "c=1; d=2")],
        "body": b'{"x": 1}',
        "source": "127.0.0.1",
    }
    return HttpRequest(**{**values, **given})


def test_an_event_has_the_shape_of_payload_format_2() -> None:
    """Names lower-cased, repeated headers and parameters joined, cookies apart."""
    built = event(request(), {"sub": SUBJECT, "exp": 1, "ok": True, "aud": ["a", "b"]})
    assert built["version"] == "2.0"
    assert built["headers"] == {"host": "h:1", "x-a": "1,2"}
    assert built["cookies"] == ["c=1", "d=2"]
    assert built["queryStringParameters"] == {"a": "1,2", "b": ""}
    assert built["pathParameters"] == {"id": "7"}
    assert (built["body"], built["isBase64Encoded"]) == ('{"x": 1}', False)
    context = built["requestContext"]
    assert context["http"]["method"] == "POST"
    assert context["authorizer"]["jwt"] == {
        "claims": {"sub": SUBJECT, "exp": "1", "ok": "true", "aud": "[a b]"},
        "scopes": None,
    }


def test_an_event_leaves_out_what_is_not_there() -> None:
    """A handler finds no `body`, `cookies` or `authorizer` rather than empty ones."""
    built = event(request(headers=[], query="", body=b""))
    assert not {"body", "cookies", "queryStringParameters"} & set(built)
    assert "authorizer" not in built["requestContext"]


def test_a_binary_body_travels_as_base64() -> None:
    """An image is not text, and JSON that is not UTF-8 is not text either."""
    for kind in ("image/png", "application/json"):
        built = event(request(headers=[("Content-Type", kind)], body=b"\xff\x00"))
        assert (built["body"], built["isBase64Encoded"]) == ("/wA=", True)


def test_claims_become_text() -> None:
    """API Gateway hands every claim to the function as text."""
    assert claim_text({"a": [1]}) == '{"a": [1]}'
    assert claim_text(["x", True]) == "[x true]"


def test_a_result_without_status_is_the_body() -> None:
    """Format 2.0 wraps any JSON value with status 200."""
    for result in ({"a": 1}, [1], 5, None):
        response = read_response(json.dumps(result).encode())
        assert response.status == 200
        assert json.loads(response.body) == result
    assert read_response(b'"text"').body == b"text"


def test_a_result_with_status_is_the_response() -> None:
    """Headers are lower-cased, cookies become set-cookie, base64 is decoded."""
    result = {
        "statusCode": 201,
        "headers": {"X-A": "1"},
        "cookies": ["c=1"],
        "body": "aGk=",
        "isBase64Encoded": True,
    }
    response = read_response(json.dumps(result).encode())
    assert (response.status, response.body) == (201, b"hi")
    assert ("x-a", "1") in response.headers
    assert ("set-cookie", "c=1") in response.headers


@pytest.mark.parametrize(
    "result",
    [
        {"statusCode": "abc"},
        {"statusCode": 99},
        {"statusCode": 200, "body": {"a": 1}},
        {"statusCode": 200, "headers": ["a"]},
        {"statusCode": 200, "body": "!", "isBase64Encoded": True},
    ],
)
def test_a_malformed_result_is_refused(result: dict[str, Any]) -> None:
    """The caller gets 500, as from API Gateway, and none of the function's words."""
    with pytest.raises(MalformedResponseError):
        read_response(json.dumps(result).encode())


ISSUER = issuer_at("http://127.0.0.1:1")
SETTINGS = JwtAuthorizer(ISSUER.url, ("lambda-pg-local",))
KEY = jwt.PyJWKSet.from_dict(ISSUER.jwks()).keys[0]


def test_a_good_token_yields_its_claims() -> None:
    """The subject comes from the token."""
    assert verify(ISSUER.token(SUBJECT), KEY, SETTINGS)["sub"] == SUBJECT


def test_client_id_counts_where_there_is_no_audience() -> None:
    """Access tokens of Cognito have no `aud`."""
    claims = {"iss": ISSUER.url, "exp": time.time() + 60, "client_id": "lambda-pg-local"}
    token = jwt.encode(claims, ISSUER.key, "RS256")
    assert verify(token, KEY, SETTINGS)["client_id"] == "lambda-pg-local"
    wrong = jwt.encode({**claims, "aud": "other"}, ISSUER.key, "RS256")
    with pytest.raises(jwt.InvalidAudienceError):
        verify(wrong, KEY, SETTINGS)


@pytest.mark.parametrize(
    "token",
    [
        ISSUER.token(SUBJECT, audience="other"),
        ISSUER.token(SUBJECT, seconds=-1),
        ISSUER.token(SUBJECT, claims={"iss": "http://127.0.0.1:2"}),
        ISSUER.token(SUBJECT, claims={"nbf": time.time() + 86_400}),
        ISSUER.token(SUBJECT, claims={"iat": time.time() + 86_400}),
        Issuer.create(ISSUER.url).token(SUBJECT),
        jwt.encode({"iss": ISSUER.url, "aud": "lambda-pg-local"}, ISSUER.key, "RS256"),
        "not.a.token",
    ],
    ids=[
        "audience",
        "expired",
        "issuer",
        "not yet",
        "from the future",
        "another key",
        "no expiry",
        "garbage",
    ],
)
def test_a_wrong_token_is_refused(token: str) -> None:
    """Audience, expiry, issuer, start, key: each alone is enough."""
    with pytest.raises(jwt.PyJWTError):
        verify(token, KEY, SETTINGS)


def test_scopes_come_as_text_or_as_a_list() -> None:
    """`scope` has spaces between, `scp` is either."""
    assert granted_scopes({"scope": "a b"}) == {"a", "b"}
    assert granted_scopes({"scp": ["a"]}) == {"a"}
    assert granted_scopes({}) == set()


def test_a_bucket_lets_a_burst_through_and_then_the_rate() -> None:
    """Two at once, then one for each half second at two a second."""
    now = [0.0]
    bucket = Bucket(Throttle(rate=2, burst=2), lambda: now[0])
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    now[0] = 0.5
    assert [bucket.take() for _ in range(2)] == [True, False]


def test_no_settings_mean_no_throttle() -> None:
    """A burst of 0 is unbounded."""
    bucket = Bucket(Throttle())
    assert all(bucket.take() for _ in range(10_000))


CORS = Cors(origins=("https://a.example",), methods=("GET",), headers=("x-a",), max_age=60)


PREFLIGHT = {"origin": "https://a.example", "access-control-request-method": "GET"}


def test_preflight_names_what_is_allowed() -> None:
    """An allowed origin gets the configuration back."""
    response = preflight(CORS, PREFLIGHT)
    assert response.status == 204
    assert dict(response.headers) == {
        "access-control-allow-origin": "https://a.example",
        "access-control-allow-methods": "GET",
        "access-control-allow-headers": "x-a",
        "access-control-max-age": "60",
    }


def test_a_foreign_origin_gets_no_cors_headers() -> None:
    """The browser refuses by their absence."""
    for method in ("GET", "OPTIONS"):
        assert not allowed_headers(CORS, method, {**PREFLIGHT, "origin": "https://b.example"})
        assert not allowed_headers(CORS, method, {"access-control-request-method": "GET"})


def test_an_options_request_without_a_method_to_allow_is_no_preflight() -> None:
    """AWS documents that both headers must be there."""
    response = preflight(CORS, {"origin": "https://a.example"})
    assert (response.status, list(response.headers)) == (204, [])
