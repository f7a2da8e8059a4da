"""Who may do what: each user on each route, with each other user's ids and keys and each scope.

The table below says what should happen, and no request is tried to find out. The second half takes
each guard away, once, and sees the matrix fail.
"""

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest

from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.deployment.deployed import Api, Route
from lambda_pg_cdk.local.http.caller import call
from lambda_pg_cdk.local.http_api.events import HttpRequest, build_event
from lambda_pg_cdk.local.http_api.routes import find_route
from tests.support.matrix import FIELDS, PEOPLE, Cell, Matrix, cells, mistakes
from tests.support.matrix_database import KEYS, Admin, breaches, rows_of_others
from tests.support.mutants import deployed_mutant, mutant_function
from tests.support.tokens import SUBJECTS, refused, without_subject

TABLE: Mapping[str, Mapping[str, str]] = {
    "/users": {"GET": "users:read", "POST": "users:write"},
    "/users/{id}": {"GET": "users:read", "PATCH": "users:write"},
    "/notes": {"POST": "notes:write"},
    "/notes/{id}": {"GET": "notes:read"},
}
"""The scope that each method of each path wants. Other methods are refused with 405."""

PUBLIC = ("/openapi.json", "/swagger")
"""Paths that want no token."""

ELSEWHERE = {"ANY /baseline/users/{id}", "ANY /health", "OPTIONS /sql", "POST /sql"}
"""Routes that other tests look at: the storm's control, a probe, and `/sql` with its keys."""

GRANTS: Mapping[str, tuple[str, ...]] = {
    "users": ("", "users:read", "users:write", "users:read users:write", "notes:read notes:write"),
    "notes": ("", "notes:read", "notes:write", "notes:read notes:write", "users:read users:write"),
}
"""The scopes that callers have: none, one, the other, both, and those of the other API."""

ALL = " ".join(sorted({scope for methods in TABLE.values() for scope in methods.values()}))
COLLECTIONS = tuple(path.removeprefix("/") for path in TABLE if "{id}" not in path)


def expected(cell: Cell) -> int:
    """Return the status of a request."""
    methods = TABLE[cell.path]
    wanted = {methods[cell.method]} if cell.method in methods else set(methods.values())
    if not wanted & cell.scopes:
        return 403
    if cell.method not in methods:
        return 405
    if "{id}" in cell.path and cell.target != cell.caller:
        return 404
    return 201 if cell.method == "POST" else 200


def every_cell(path: str) -> Iterator[Cell]:
    """Yield each combination for a path."""
    grants = [frozenset(each.split()) for each in GRANTS[path.split("/")[1]]]
    yield from cells(path, grants, TABLE[path].keys() & {"POST", "PATCH"})


def wrong(matrix: Matrix, chosen: Iterable[Cell]) -> list[str]:
    """Send the requests of cells; say which of them end otherwise than the table says."""
    table = {cell: expected(cell) for cell in chosen}
    assert table
    return mistakes({cell: matrix.send(cell) for cell in table}, table)


@pytest.fixture
def matrix(cloud: LocalCloud) -> Matrix:
    """Three people, each with one row in each collection."""
    return Matrix(cloud, COLLECTIONS, ALL)


@pytest.fixture(scope="module")
def admin(cloud: LocalCloud) -> Iterator[Admin]:
    """The superuser of the database."""
    with Admin(cloud) as found:
        yield found


def test_every_route_is_in_the_table(cloud: LocalCloud) -> None:
    """A route that somebody adds is missed here."""
    deployed = set(cloud.status()["apis"][0]["routes"]) - ELSEWHERE
    guarded = {f"{method} {path}" for path, methods in TABLE.items() for method in methods}
    others = {f"ANY {path}" for path in TABLE}
    assert deployed == guarded | others | {f"GET {path}" for path in PUBLIC}


@pytest.mark.parametrize("path", TABLE)
def test_each_combination_ends_as_the_table_says(matrix: Matrix, admin: Admin, path: str) -> None:
    """And nobody sees or changes what is another's, by its id or by its key."""
    assert wrong(matrix, every_cell(path)) == []
    assert misplaced(matrix, admin) == []


def misplaced(matrix: Matrix, admin: Admin) -> list[str]:
    """Say which rows are not as the table leaves them: each word is its owner's."""
    texts = {person.subject: person.text for person in matrix.people.values()}
    return [
        problem
        for name in COLLECTIONS
        for problem in rows_of_others(admin, name, FIELDS[name], texts)
    ]


def asked(
    cloud: LocalCloud, token: str | None, path: str, method: str, **headers: str
) -> tuple[int, str | None]:
    """Send a request of the table with any token; return the status and the problem's type."""
    body = {FIELDS[path.split("/")[1]]: "Ada"} if method in {"POST", "PATCH"} else None
    found = path.replace("{id}", str(uuid.uuid4()))
    answer = call(cloud.url, method, found, token, body, headers=headers)
    problem = answer.headers["content-type"] == "application/problem+json"
    return answer.status, answer.json()["type"] if problem else None


def every_method() -> list[tuple[str, str]]:
    """Return each path with each method of the table."""
    return [(path, method) for path, methods in TABLE.items() for method in methods]


def accepted(cloud: LocalCloud) -> list[str]:
    """Return the tokens that should be refused and are not."""
    tokens = refused(cloud.issuer, str(uuid.uuid4()), ALL)
    return [
        f"{what}: {method} {path}"
        for what, token in tokens.items()
        for path, method in every_method()
        if asked(cloud, token, path, method) != (401, None)
    ]


def test_a_token_that_is_not_valid_is_401_everywhere(cloud: LocalCloud) -> None:
    """Expired, too early, of another issuer, for another audience, changed or forged."""
    assert accepted(cloud) == []


def unrefused(cloud: LocalCloud) -> list[str]:
    """Return the subjects that can own nothing, and are not refused."""
    tokens = {
        name: without_subject(cloud.issuer, ALL) if subject is None else cloud.token(subject)
        for name, subject in SUBJECTS.items()
    }
    return [
        f"{name}: {method} {path}"
        for name, token in tokens.items()
        for path, method in every_method()
        if asked(cloud, token, path, method) != (403, "docs/problems.md#no-subject")
    ]


def test_a_subject_that_is_no_uuid_is_403_everywhere(cloud: LocalCloud) -> None:
    """Missing, empty or a name: the token is valid, and its subject can own nothing."""
    assert unrefused(cloud) == []


@pytest.mark.parametrize("path", PUBLIC)
def test_what_is_public_wants_no_token(cloud: LocalCloud, path: str) -> None:
    """Nor looks at one."""
    for token in (None, "nonsense", cloud.token(str(uuid.uuid4()), scope="")):
        assert call(cloud.url, "GET", path, token).status == 200
    assert call(cloud.url, "POST", path).status == 404


# Cross-site requests


def cookie_of(cloud: LocalCloud) -> str:
    """Return a cookie with a good token under the names that an API could look at."""
    token = cloud.token(str(uuid.uuid4()))
    return f"Authorization=Bearer {token}; token={token}; session={token}; id_token={token}"


FOREIGN = "https://evil.example"


@pytest.mark.parametrize("origin", [None, "own", FOREIGN, "null"])
def test_a_cookie_is_no_token(cloud: LocalCloud, origin: str | None) -> None:
    """It is 401 whatever the origin, also where the API allows that origin."""
    headers = {"Cookie": cookie_of(cloud)}
    if origin is not None:
        headers["Origin"] = cloud.url if origin == "own" else origin
    with open_cors(cloud, FOREIGN, "null") if origin in {FOREIGN, "null"} else nullcontext():
        seen = {asked(cloud, None, *each, **headers) for each in every_method()}
    assert seen == {(401, None)}


def test_a_function_reads_no_cookie_itself(cloud: LocalCloud) -> None:
    """Without an authorizer in front of it there is no subject."""
    for path, method in every_method():
        event = event_of(path, method, cookie_of(cloud))
        answer = cloud.invoke(path.split("/")[1], event)["payload"]
        assert answer["statusCode"] == 403, answer


def event_of(path: str, method: str, cookie: str) -> dict[str, Any]:
    """Make the event of a request that no authorizer has looked at."""
    route = Route(f"{method} {path}", "f", "2.0", 1.0)
    request = HttpRequest(
        id="1",
        method=method,
        path=path.replace("{id}", str(uuid.uuid4())),
        query="",
        headers=[("Cookie", cookie), ("Content-Type", "application/json")],
        body=b'{"%s": "Ada"}' % FIELDS[path.split("/")[1]].encode(),
        source="127.0.0.1",
    )
    match = find_route([route], method, request.path)
    assert match is not None
    return build_event(request, Api("1", "$default", (route,)), match, None)


def test_cors_is_closed(cloud: LocalCloud) -> None:
    """The API has no configuration: no answer has a header of CORS, a preflight's least of all."""
    asks = {"Origin": cloud.url, "Access-Control-Request-Method": "POST"}
    assert "CorsConfiguration" not in api_of(cloud)
    for path in (*TABLE, *PUBLIC):
        for method in ("OPTIONS", "GET"):
            answer = call(cloud.url, method, path, cloud.token(str(uuid.uuid4())), headers=asks)
            assert not [name for name in answer.headers if name.startswith("access-control-")]
            refusal = call(cloud.url, method, path, headers={**asks, "Origin": FOREIGN})
            assert refusal.status == 403
            assert "access-control-allow-origin" not in refusal.headers


def test_cors_would_be_seen(cloud: LocalCloud) -> None:
    """The control: with a configuration the same answers have its headers."""
    with open_cors(cloud, FOREIGN):
        answer = call(cloud.url, "GET", "/users", headers={"Origin": FOREIGN})
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (401, FOREIGN)


# Each guard is removed once


def api_of(cloud: LocalCloud) -> dict[str, Any]:
    """Describe the deployed API."""
    found: dict[str, Any] = cloud.client("apigatewayv2").get_api(ApiId=api_id(cloud))
    return found


def api_id(cloud: LocalCloud) -> str:
    """Return the id of the API at the cloud's address."""
    return str(cloud.status()["apis"][0]["id"])


@contextmanager
def open_cors(cloud: LocalCloud, *origins: str) -> Iterator[None]:
    """Give the API a CORS configuration."""
    client, api = cloud.client("apigatewayv2"), api_id(cloud)
    cors = {"AllowOrigins": [*origins], "AllowMethods": ["GET"], "AllowHeaders": ["authorization"]}
    client.update_api(ApiId=api, CorsConfiguration=cors)
    try:
        cloud.reconcile()
        yield
    finally:
        client.delete_cors_configuration(ApiId=api)
        cloud.reconcile()


@contextmanager
def changed_route(cloud: LocalCloud, key: str, **changes: Any) -> Iterator[None]:
    """Change a deployed route."""
    client, api = cloud.client("apigatewayv2"), api_id(cloud)
    routes = {each["RouteKey"]: each for each in client.get_routes(ApiId=api)["Items"]}
    names = ("AuthorizationScopes", "AuthorizationType", "AuthorizerId")
    before = {name: routes[key][name] for name in names}
    route = routes[key]["RouteId"]
    client.update_route(ApiId=api, RouteId=route, **changes)
    try:
        cloud.reconcile()
        yield
    finally:
        client.update_route(ApiId=api, RouteId=route, **before)
        cloud.reconcile()


@contextmanager
def another_audience(cloud: LocalCloud) -> Iterator[None]:
    """Let the authorizer take tokens for another audience, too."""
    client, api = cloud.client("apigatewayv2"), api_id(cloud)
    (found,) = client.get_authorizers(ApiId=api)["Items"]
    known = {"ApiId": api, "AuthorizerId": found["AuthorizerId"]}
    settings = found["JwtConfiguration"]
    wider = {**settings, "Audience": [*settings["Audience"], "another"]}
    client.update_authorizer(**known, JwtConfiguration=wider)
    try:
        cloud.reconcile()
        yield
    finally:
        client.update_authorizer(**known, JwtConfiguration=settings)
        cloud.reconcile()


def some(path: str, method: str | None = None) -> list[Cell]:
    """Return the cells of one caller, for what is the caller's, without keys."""
    return [
        cell
        for cell in every_cell(path)
        if cell.caller == "ada"
        and cell.target in {"ada", None}
        and cell.key is None
        and (cell.method == method if method else cell.method not in TABLE[path])
    ]


@pytest.mark.parametrize(("path", "method"), [*every_method(), *((path, "ANY") for path in TABLE)])
def test_without_a_routes_scopes_the_matrix_fails(
    cloud: LocalCloud, matrix: Matrix, path: str, method: str
) -> None:
    """For each route by itself: callers without a scope come through."""
    chosen = some(path, None if method == "ANY" else method)
    assert wrong(matrix, chosen) == []
    with changed_route(cloud, f"{method} {path}", AuthorizationScopes=[]):
        found = wrong(matrix, chosen)
    assert len(found) == len([cell for cell in chosen if expected(cell) == 403])


@pytest.mark.parametrize(("path", "method"), every_method())
def test_without_a_routes_authorizer_the_matrix_fails(
    cloud: LocalCloud, path: str, method: str
) -> None:
    """For each route by itself: every token comes through, and the function finds no subject."""
    with changed_route(cloud, f"{method} {path}", AuthorizationType="NONE"):
        found = accepted(cloud)
    assert found == [f"{what}: {method} {path}" for what in refused(cloud.issuer, "", ALL)]


def test_without_the_check_of_the_audience_the_matrix_fails(cloud: LocalCloud) -> None:
    """A token for another API of the same issuer comes through."""
    with another_audience(cloud):
        found = accepted(cloud)
    assert {each.partition(":")[0] for each in found} == {"another audience"}


CHECK = "        if not isinstance(subject, str) or _SUBJECT.fullmatch(subject) is None:\n"
SUBJECT = '        return {"sub": subject.lower()}\n'
REQUEST = "http_api/request.py"


def test_without_the_check_of_the_subject_the_matrix_fails(cloud: LocalCloud) -> None:
    """PostgreSQL refuses such a subject: the caller sees 500."""
    for function in COLLECTIONS:
        mutant = (REQUEST, CHECK, "        if not isinstance(subject, str):\n")
        with deployed_mutant(cloud, mutant, function):
            assert any(f"/{function}" in each for each in unrefused(cloud))


def test_if_all_callers_were_one_the_matrix_would_fail(cloud: LocalCloud, matrix: Matrix) -> None:
    """What the functions take for the subject is what everything else relies on."""
    one = matrix.people["ada"].subject
    mutant = (REQUEST, SUBJECT, f"        return {{'sub': '{one}'}}\n")
    for function in COLLECTIONS:
        with deployed_mutant(cloud, mutant, function):
            found = wrong(matrix, of_others(f"/{function}/{{id}}"))
        assert len(found) >= len(PEOPLE) - 1


def of_others(path: str) -> list[Cell]:
    """Return the cells of callers with both scopes, for rows of all people, without keys."""
    both = frozenset(scope for scope in TABLE[path].values())
    return [
        cell
        for cell in every_cell(path)
        if cell.scopes >= both and cell.method in TABLE[path] and cell.key is None and cell.target
    ]


def any_owner(text: str) -> str:
    """Take the owner out of the statements of a function."""
    assert text.count("owner = %(owner)s") >= 1
    return text.replace("owner = %(owner)s", "TRUE")


Guard = Callable[[LocalCloud, Admin, str], AbstractContextManager[object]]


def no_policies(_: LocalCloud, admin: Admin, table: str) -> AbstractContextManager[object]:
    """Switch row-level security of a table off."""
    return admin.without_policies(table)


def no_owners(cloud: LocalCloud, _: Admin, function: str) -> AbstractContextManager[object]:
    """Let the statements of a function name no owner."""
    return mutant_function(cloud, function, any_owner)


def no_policies_of_keys(_: LocalCloud, admin: Admin, _name: str) -> AbstractContextManager[object]:
    """Switch row-level security of the keys off."""
    return admin.without_policies(KEYS)


def no_owners_of_keys(_: LocalCloud, admin: Admin, _name: str) -> AbstractContextManager[object]:
    """Let a key be found whatever its owner is."""
    return admin.keys_of_anybody()


@pytest.mark.parametrize("name", COLLECTIONS)
@pytest.mark.parametrize(
    ("removed", "fails"),
    [
        pytest.param((no_policies,), False, id="the function alone"),
        pytest.param((no_owners,), False, id="row-level security alone"),
        pytest.param((no_policies, no_owners), True, id="neither"),
        pytest.param((no_policies_of_keys,), False, id="the keys' function alone"),
        pytest.param((no_owners_of_keys,), False, id="the keys' row-level security alone"),
        pytest.param((no_policies_of_keys, no_owners_of_keys), True, id="neither for keys"),
    ],
)
def test_functions_and_row_level_security_each_hold_alone(
    cloud: LocalCloud,
    matrix: Matrix,
    admin: Admin,
    name: str,
    removed: tuple[Guard, ...],
    fails: bool,
) -> None:
    """Where one of the two is gone the other keeps owners apart; without both nothing does."""
    chosen = [cell for path in TABLE if path.startswith(f"/{name}") for cell in whole(path)]
    with ExitStack() as stack:
        for guard in removed:
            stack.enter_context(guard(cloud, admin, name))
        found = wrong(matrix, chosen)
    assert bool(found) == fails, found


def whole(path: str) -> Iterator[Cell]:
    """Yield the cells that reach the database."""
    return (cell for cell in every_cell(path) if expected(cell) not in {403, 405})


@pytest.fixture
def subjects(matrix: Matrix) -> list[str]:
    """Three people, each with a row in each table, and with a key."""
    for person in matrix.people.values():
        body = {FIELDS[COLLECTIONS[0]]: person.text}
        matrix.ask(person, "POST", f"/{COLLECTIONS[0]}", body, Idempotency_Key="one")
    return [person.subject for person in matrix.people.values()]


TABLES = (*COLLECTIONS, KEYS)


@pytest.mark.parametrize("table", TABLES)
def test_the_database_shows_each_caller_only_what_is_the_callers(
    admin: Admin, subjects: list[str], table: str
) -> None:
    """Whatever a function asks for, with the rights that a function has."""
    assert [*breaches(admin, table, subjects)] == []


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    "removed",
    [
        pytest.param(Admin.without_policies, id="row-level security"),
        pytest.param(partial(Admin.open_policy, clause="USING"), id="what is seen"),
        pytest.param(partial(Admin.open_policy, clause="WITH CHECK"), id="what is written"),
    ],
)
def test_without_its_policy_the_database_shows_more(
    admin: Admin,
    subjects: list[str],
    table: str,
    removed: Callable[[Admin, str], AbstractContextManager[None]],
) -> None:
    """Each half of a policy is needed."""
    with removed(admin, table):
        assert [*breaches(admin, table, subjects)]
