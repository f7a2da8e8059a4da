"""A stage that lets pages of one origin use its API: CORS in one place, for every function."""

import uuid
from collections.abc import Iterator

import pytest

from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.http.caller import call

pytestmark = pytest.mark.timeout(600)  # deployments take minutes where the machine is busy

PAGE = "https://app.example"
OPENED = {"api": {"origins": [PAGE]}, "sql": {"origins": [PAGE]}}

PATHS = ("/users", f"/users/{uuid.UUID(int=1)}", "/sql")


@pytest.fixture(scope="module")
def opened(cloud: LocalCloud) -> Iterator[LocalCloud]:
    """A cloud whose stage names an origin, until the tests of this file end."""
    cloud.deploy(override=OPENED)
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
def test_a_preflight_needs_no_token(opened: LocalCloud, path: str) -> None:
    """It says what the page may send, also where a function answers by itself."""
    asked = asking("POST")
    answer = call(opened.url, "OPTIONS", path, headers=asked)
    assert answer.status in {200, 204}
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert {"POST", "PATCH"} <= {*answer.headers["access-control-allow-methods"].split(",")}
    allowed = {*answer.headers["access-control-allow-headers"].split(",")}
    assert {*asked["Access-Control-Request-Headers"].split(",")} <= allowed
    assert "access-control-allow-credentials" not in answer.headers


def test_a_page_reads_answers_and_their_etags(opened: LocalCloud) -> None:
    """A token is needed as ever, and a cookie is none."""
    token, page = opened.token(str(uuid.uuid4())), {"Origin": PAGE}
    made = call(opened.url, "POST", "/users", token, {"name": "Ada"}, headers=page)
    assert (made.status, made.headers["access-control-allow-origin"]) == (201, PAGE)
    assert "etag" in made.headers["access-control-expose-headers"].split(",")
    with_cookie = call(opened.url, "GET", "/users", headers={**page, "Cookie": f"token={token}"})
    assert (with_cookie.status, with_cookie.headers["access-control-allow-origin"]) == (401, PAGE)


def test_a_wrong_method_is_405_without_a_route_for_any_method(opened: LocalCloud) -> None:
    """Such a route would take the preflights: each method has a route."""
    token = opened.token(str(uuid.uuid4()))
    assert call(opened.url, "DELETE", "/users", token).status == 405
    assert not [key for key in routes(opened) if key in {"ANY /users", "ANY /users/{id}"}]


def routes(cloud: LocalCloud) -> list[str]:
    """Return the keys of the API's routes."""
    found: list[str] = cloud.status()["apis"][0]["routes"]
    return found


@pytest.mark.parametrize("path", PATHS)
def test_another_origin_gets_no_header(opened: LocalCloud, path: str) -> None:
    """The local cloud refuses it before the API would; see tests/unit/test_http_api.py."""
    answer = call(opened.url, "OPTIONS", path, headers=asking("POST", "https://evil.example"))
    assert (answer.status, "access-control-allow-origin" in answer.headers) == (403, False)
