"""The deployed API: every route, and everything that a client can get wrong."""

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.daemon.deployments import stage_settings
from lambda_pg_cdk.local.http.caller import Answer, call
from lambda_pg_cdk.local.servers.postgres import superuser_dsn as local_superuser_dsn

SOMEBODY = "6f1c7f5e-8f57-4c3c-9c7e-0d7f3a1f2b6d"


class Client:
    """One user of the API."""

    def __init__(self, cloud: LocalCloud) -> None:
        """Choose a subject and get a token for it."""
        self._url = cloud.url
        self.subject = str(uuid.uuid4())
        self.token: str | None = cloud.token(self.subject)

    def call(self, method: str, path: str, body: object = None) -> Answer:
        """Send one request with the token."""
        return call(self._url, method, path, self.token, body)

    def create(self, name: str = "Ada") -> str:
        """Create a user; return its path."""
        answer = self.call("POST", "/users", {"name": name})
        assert answer.status == 201, answer
        return answer.headers["location"]


@pytest.fixture
def ada(cloud: LocalCloud) -> Client:
    """A user of the API."""
    return Client(cloud)


@pytest.fixture
def eve(cloud: LocalCloud) -> Client:
    """Another one."""
    return Client(cloud)


def test_a_user_is_created_read_listed_and_renamed(ada: Client) -> None:
    """The sample routes do what they say, and each change counts the version up."""
    path = ada.create("Ada")
    assert ada.call("GET", path).json()["name"] == "Ada"
    assert [user["name"] for user in ada.call("GET", "/users").json()["users"]] == ["Ada"]
    renamed = ada.call("PATCH", path, {"name": "Countess of Lovelace"})
    assert (renamed.status, renamed.json()["name"]) == (200, "Countess of Lovelace")
    assert renamed.headers["etag"] == '"2"'
    assert ada.call("GET", path).json() == renamed.json()


def test_lists_come_in_pages(ada: Client) -> None:
    """Each page names the next, and together they hold every user once."""
    created = {ada.create(f"user {number}") for number in range(5)}
    seen: list[str] = []
    after = ""
    for _ in range(3):
        page = ada.call("GET", f"/users?limit=2{after}").json()
        seen += [f"/users/{user['id']}" for user in page["users"]]
        after = f"&after={page['next']}"
    assert page["next"] is None
    assert sorted(seen) == sorted(created)


def test_health_says_up_and_nothing_else(cloud: LocalCloud) -> None:
    """Anybody may ask."""
    answer = call(cloud.url, "GET", "/health")
    assert (answer.status, answer.json()) == (200, {"status": "up"})


def test_the_baseline_answers_as_the_pooled_function_does(ada: Client) -> None:
    """The control of the storm does the same work."""
    path = ada.create()
    assert (
        ada.call("GET", f"/baseline{path}").json()["name"] == ada.call("GET", path).json()["name"]
    )


@pytest.mark.parametrize("path", ["/", "/nothing", "/users/a/b", "/baseline"])
def test_an_unknown_route_is_404(ada: Client, path: str) -> None:
    """What is not deployed is not found."""
    assert ada.call("GET", path).status == 404


@pytest.mark.parametrize("token", [None, "", "nonsense", "a.b.c"])
def test_a_missing_or_wrong_token_is_401(ada: Client, token: str | None) -> None:
    """Without a verified token nothing is answered."""
    ada.token = token
    answer = ada.call("GET", "/users")
    assert (answer.status, answer.json()) == (401, {"message": "Unauthorized"})


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": " A "}, "name"),
        ({"name": "x" * 51}, "name"),
        ({"name": 5}, "name"),
        ({"name": "Ada", "owner": SOMEBODY}, "owner"),
        ([{"name": "Ada"}], "body"),
    ],
)
def test_an_invalid_body_is_422_and_names_the_field(ada: Client, body: object, field: str) -> None:
    """The client learns what to mend."""
    answer = ada.call("POST", "/users", body)
    assert (answer.status, problem_of(answer)) == (422, "invalid-fields")
    assert [each["field"] for each in answer.json()["errors"]] == [field]


@pytest.mark.parametrize(
    ("body", "status", "problem"),
    [
        (b"{not json", 400, "malformed-json"),
        (b"[" * 1000, 400, "too-deep"),
        (b" " * 65_537, 413, "body-too-large"),
    ],
)
def test_a_body_that_is_not_parsed_is_refused(
    ada: Client, body: bytes, status: int, problem: str
) -> None:
    """In problem details, too."""
    answer = ada.call("POST", "/users", body)
    assert (answer.status, problem_of(answer)) == (status, problem)


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "after=x"])
def test_an_invalid_query_is_422_and_names_the_parameter(ada: Client, query: str) -> None:
    """So does a wrong query string."""
    answer = ada.call("GET", f"/users?{query}")
    assert (answer.status, problem_of(answer)) == (422, "invalid-fields")
    assert [each["field"] for each in answer.json()["errors"]] == [query.partition("=")[0]]


def test_an_unknown_id_is_404(ada: Client) -> None:
    """A user who is not there."""
    path = f"/users/{uuid.uuid4()}"
    for answer in (ada.call("GET", path), ada.call("PATCH", path, {"name": "Ada"})):
        assert (answer.status, problem_of(answer)) == (404, "not-found")


def test_another_owners_user_is_as_unknown(ada: Client, eve: Client) -> None:
    """Eve can neither read, change, list, nor tell apart what is Ada's."""
    path = ada.create()
    missing = eve.call("GET", f"/users/{uuid.uuid4()}")
    found = eve.call("GET", path)
    assert (found.status, without_id(found)) == (404, without_id(missing))
    assert eve.call("PATCH", path, {"name": "Eve's"}).status == 404
    assert eve.call("GET", "/users").json()["users"] == []
    assert eve.call("GET", f"/baseline{path}").status == 404
    assert ada.call("GET", path).json()["name"] == "Ada"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/users", "GET, POST"),
        ("PUT", f"/users/{SOMEBODY}", "GET, PATCH"),
        ("POST", "/health", "GET"),
    ],
)
def test_a_wrong_method_is_405_and_names_the_right_ones(
    ada: Client, method: str, path: str, allowed: str
) -> None:
    """The path is right, the method is not."""
    answer = ada.call(method, path)
    assert (answer.status, answer.headers["allow"]) == (405, allowed)


def test_a_token_whose_subject_is_no_uuid_is_403(cloud: LocalCloud, ada: Client) -> None:
    """Owners are UUIDs: another subject can own nothing."""
    ada.token = cloud.token("somebody")
    answer = ada.call("GET", "/users")
    assert (answer.status, problem_of(answer)) == (403, "no-subject")


def test_without_a_pooler_the_answer_is_503_and_says_when_to_come_back(
    cloud: LocalCloud, ada: Client
) -> None:
    """Neither a 500 nor a hang, nothing internal, and all is well when the pooler is back."""
    path = ada.create()
    cloud.pooler("stop")
    try:
        cloud.end_environments("health")
        with ThreadPoolExecutor() as threads:  # each waits for its checkout timeout
            user = threads.submit(ada.call, "GET", path)
            health = call(cloud.url, "GET", "/health")
            answer = user.result()
    finally:
        cloud.pooler("start")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert problem_of(answer) == "database-unavailable"
    assert (health.status, health.json()) == (503, {"status": "down"})
    assert ada.call("GET", path).status == 200


def test_no_password_is_in_any_log(cloud: LocalCloud, passwords: list[str]) -> None:
    """After everything above, no file that a process wrote to says a password."""
    roles = stage_settings(PROJECT, {}).sql.roles
    assert len(passwords) == len(["owner", "application", *roles])
    logs = logs_of(cloud)
    assert {"users.log", "pgbouncer.log", "postgres.log"} <= {log.name for log in logs}
    found = [
        (log.name, line)
        for log in logs
        for line in log.read_text(errors="replace").splitlines()
        if any(password in line for password in passwords)
    ]
    assert not found


def test_no_value_is_in_any_log(cloud: LocalCloud, ada: Client) -> None:
    """What a client sends is in no log, whether the statement works, is slow or fails.

    The client gets no word of PostgreSQL's, and the function's log says which constraint it was.
    """
    canary = f"canary-{uuid.uuid4().hex}"
    with psycopg.connect(superuser_dsn(cloud), autocommit=True) as admin:
        for user in ("lambda_pg_user", "lambda_pg_user_clone"):
            if admin.execute("SELECT FROM pg_roles WHERE rolname = %s", [user]).rowcount:
                admin.execute(f"ALTER ROLE {user} SET log_min_duration_statement = 0")
        end_backends(admin)
        path = ada.create(canary)
        assert ada.call("PATCH", path, {"name": f"{canary}-2"}).status == 200
        admin.execute("ALTER TABLE users ADD CONSTRAINT short CHECK (length(name) < 45)")
        try:
            refused = ada.call("POST", "/users", {"name": f"{canary}-refused"})
        finally:
            admin.execute("ALTER TABLE users DROP CONSTRAINT short")
    assert (refused.status, refused.json()) == (500, {"message": "Internal Server Error"})
    found = {path.name for path in logs_of(cloud) if canary in path.read_text(errors="replace")}
    assert not found
    assert "CheckViolation, SQLSTATE 23514, constraint short" in log_named(cloud, "users.log")
    assert 'violates check constraint "short"' in log_named(cloud, "postgres.log")
    assert "duration: " in log_named(cloud, "postgres.log")


def problem_of(answer: Answer) -> str:
    """Return the name of the problem, which is the last part of its type."""
    assert answer.headers["content-type"] == "application/problem+json", answer
    name: str = answer.json()["type"].partition("#")[2]
    return name


def without_id(answer: Answer) -> dict[str, object]:
    """Return problem details without the id of the request, which is new in each."""
    return {**answer.json(), "instance": ""}


def superuser_dsn(cloud: LocalCloud) -> str:
    """Return the address of the superuser in the application's database."""
    port = cloud.status()["postgres"]["port"]
    return make_conninfo(local_superuser_dsn(cloud.folder / "postgres", port), dbname="app")


def end_backends(admin: psycopg.Connection[TupleRow]) -> None:
    """End the pooler's server connections: new ones have the roles' new settings."""
    admin.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE usename LIKE 'lambda_pg_user%'"
    )


def logs_of(cloud: LocalCloud) -> list[Path]:
    """Find every log of the cloud."""
    return [path for path in cloud.folder.rglob("*.log") if path.is_file()]


def log_named(cloud: LocalCloud, name: str) -> str:
    """Read one of them."""
    (path,) = [path for path in logs_of(cloud) if path.name == name]
    return path.read_text(errors="replace")


@pytest.fixture
def passwords(cloud: LocalCloud) -> list[str]:
    """The passwords of master and application user, from the deployed secrets."""
    return [secret["password"] for secret in secrets_of(cloud) if "password" in secret]


def secrets_of(cloud: LocalCloud) -> list[dict[str, str]]:
    """Read every deployed secret."""
    client = cloud.client("secretsmanager")
    arns = [secret["ARN"] for secret in client.list_secrets()["SecretList"]]
    texts = [client.get_secret_value(SecretId=arn)["SecretString"] for arn in arns]
    parsed = [json.loads(text) for text in texts if text.startswith("{")]
    return [secret for secret in parsed if isinstance(secret, dict)]


def test_the_canary_would_be_found(cloud: LocalCloud, tmp_path: Path, passwords: list[str]) -> None:
    """The search above sees a password where there is one: the secrets are the functions' own."""
    user = next(s for s in secrets_of(cloud) if s.get("username") == "lambda_pg_user")
    assert user["password"] in passwords
    log = tmp_path / "x.log"
    log.write_text(f"conninfo password={user['password']} host=x")
    assert any(password in log.read_text() for password in passwords)
