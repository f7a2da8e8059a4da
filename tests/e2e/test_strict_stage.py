"""A stage that demands keys and `If-Match`, has small bodies, and lets pages of an origin ask."""

import uuid
from collections.abc import Iterator

import pytest

from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.http.caller import Answer, call

pytestmark = pytest.mark.timeout(600)  # deployments take minutes where the machine is busy

PAGE = "https://app.example"
TYPES = "https://docs.example/problems"
API = {
    "origins": [PAGE],
    "require_idempotency_key": True,
    "require_if_match": True,
    "max_body": 2048,
    "problem_types": TYPES,
}
SETTINGS = {"api": API, "sql": {"origins": [PAGE]}}

PATHS = ("/users", f"/users/{uuid.UUID(int=1)}", "/sql")


@pytest.fixture(scope="module")
def strict(cloud: LocalCloud) -> Iterator[LocalCloud]:
    """A cloud whose stage has these settings, until the tests of this file end."""
    cloud.deploy(override=SETTINGS)
    try:
        yield cloud
    finally:
        cloud.deploy(override={})


def asking(method: str, origin: str = PAGE) -> dict[str, str]:
    """Return the headers of a preflight for a change with a key."""
    names = "authorization,content-type,idempotency-key,if-match"
    return {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": names,
    }


@pytest.mark.parametrize("path", PATHS)
def test_a_preflight_needs_no_token(strict: LocalCloud, path: str) -> None:
    """It says what the page may send, also where a function answers by itself."""
    asked = asking("POST")
    answer = call(strict.url, "OPTIONS", path, headers=asked)
    assert answer.status in {200, 204}
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert {"POST", "PATCH"} <= {*answer.headers["access-control-allow-methods"].split(",")}
    allowed = {*answer.headers["access-control-allow-headers"].split(",")}
    assert {*asked["Access-Control-Request-Headers"].split(",")} <= allowed
    assert "access-control-allow-credentials" not in answer.headers


def test_a_page_reads_answers_and_their_etags(strict: LocalCloud) -> None:
    """A token is needed as ever, and a cookie is none."""
    token, page = strict.token(str(uuid.uuid4())), {"Origin": PAGE}
    keyed = {**page, "Idempotency-Key": str(uuid.uuid4())}
    made = call(strict.url, "POST", "/users", token, {"name": "Ada"}, headers=keyed)
    assert (made.status, made.headers["access-control-allow-origin"]) == (201, PAGE)
    assert "etag" in made.headers["access-control-expose-headers"].split(",")
    with_cookie = call(strict.url, "GET", "/users", headers={**page, "Cookie": f"token={token}"})
    assert (with_cookie.status, with_cookie.headers["access-control-allow-origin"]) == (401, PAGE)


def test_a_wrong_method_is_405_without_a_route_for_any_method(strict: LocalCloud) -> None:
    """Such a route would take the preflights: each method has a route."""
    token = strict.token(str(uuid.uuid4()))
    assert call(strict.url, "DELETE", "/users", token).status == 405
    assert not [key for key in routes(strict) if key in {"ANY /users", "ANY /users/{id}"}]


def routes(cloud: LocalCloud) -> list[str]:
    """Return the keys of the API's routes."""
    found: list[str] = cloud.status()["apis"][0]["routes"]
    return found


@pytest.mark.parametrize("path", PATHS)
def test_another_origin_gets_no_header(strict: LocalCloud, path: str) -> None:
    """The local cloud refuses it before the API would; see tests/unit/test_http_api.py."""
    answer = call(strict.url, "OPTIONS", path, headers=asking("POST", "https://evil.example"))
    assert (answer.status, "access-control-allow-origin" in answer.headers) == (403, False)


@pytest.fixture
def token(strict: LocalCloud) -> str:
    """A token of somebody new."""
    return strict.token(str(uuid.uuid4()))


def refusal(answer: Answer) -> tuple[int, str]:
    """Return the status of a refusal, and the name of its problem."""
    assert answer.headers["content-type"] == "application/problem+json"
    place, _, name = answer.json()["type"].partition("#")
    assert place == TYPES
    return answer.status, name


@pytest.mark.parametrize(("path", "field"), [("/users", "name"), ("/notes", "text")])
def test_a_change_without_a_key_is_refused(
    strict: LocalCloud, token: str, path: str, field: str
) -> None:
    """By every function, and nothing is made."""
    answer = call(strict.url, "POST", path, token, {field: "Ada"})
    assert refusal(answer) == (400, "idempotency-key-missing")
    assert call(strict.url, "GET", "/users", token).json()["users"] == []


def test_a_change_without_if_match_is_refused(strict: LocalCloud, token: str) -> None:
    """The version that it was read with makes it possible, once."""
    key = {"Idempotency-Key": "the-first"}
    made = call(strict.url, "POST", "/users", token, {"name": "Ada"}, headers=key)
    path, version = made.headers["location"], made.headers["etag"]

    def rename(**headers: str) -> Answer:
        sent = {"Idempotency-Key": str(uuid.uuid4()), **headers}
        return call(strict.url, "PATCH", path, token, {"name": "Countess"}, headers=sent)

    assert refusal(rename()) == (428, "precondition-required")
    assert rename(**{"If-Match": version}).status == 200
    assert refusal(rename(**{"If-Match": version})) == (412, "precondition-failed")


@pytest.mark.parametrize(("path", "field"), [("/users", "name"), ("/notes", "text")])
def test_a_body_over_the_stages_limit_is_refused(
    strict: LocalCloud, token: str, path: str, field: str
) -> None:
    """A smaller one is not."""
    key = {"Idempotency-Key": str(uuid.uuid4())}
    for size, expected in ((2048, 422), (2049, 413)):
        body = b'{"%s": "%s"}' % (field.encode(), b"x" * (size - len(field) - 8))
        assert len(body) == size
        answer = call(strict.url, "POST", path, token, body, headers=key)
        assert refusal(answer)[0] == expected
