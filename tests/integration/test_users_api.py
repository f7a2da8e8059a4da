"""The sample function `users` on a real PostgreSQL; each answer is as its document says."""

import uuid
from collections.abc import Iterator

import pytest
from lambda_pg.http_api import Rules

from lambda_pg_cdk.local.servers.postgres import Postgres
from tests.support.served_users import Reply, ServedUsers, serving
from tests.support.targets import Target, new_target

ADA, EVE = uuid.uuid4(), uuid.uuid4()


@pytest.fixture(scope="module")
def target(postgres: Postgres) -> Iterator[Target]:
    """A migrated database."""
    with new_target(postgres) as made:
        made.migrate()
        yield made


@pytest.fixture(scope="module")
def users(postgres: Postgres, target: Target) -> Iterator[ServedUsers]:
    """The function of a stage that requires nothing."""
    with serving(postgres, target) as served:
        yield served


@pytest.fixture(scope="module")
def strict(postgres: Postgres, target: Target) -> Iterator[ServedUsers]:
    """The function of a stage that requires keys and versions."""
    rules = Rules(max_body=200, require_idempotency_key=True, require_if_match=True)
    with serving(postgres, target, rules) as served:
        yield served


def create(users: ServedUsers, name: str = "Ada", **headers: str) -> str:
    """Create a user of Ada's; return its path."""
    reply = users.call("POST", "/users", {"name": name}, subject=ADA, **headers)
    assert reply.status == 201, reply
    return reply.headers["location"]


def rename(users: ServedUsers, path: str, name: str, **headers: str) -> Reply:
    """Rename a user of Ada's."""
    return users.call("PATCH", path, {"name": name}, subject=ADA, **headers)


def read(users: ServedUsers, path: str, **headers: str) -> Reply:
    """Read a user of Ada's."""
    return users.call("GET", path, subject=ADA, **headers)


def test_a_user_has_a_version(users: ServedUsers) -> None:
    """It begins at 1, each change counts it up, and ETag has it."""
    path = create(users)
    first = read(users, path)
    assert (first.json()["version"], first.headers["etag"]) == (1, '"1"')
    changed = rename(users, path, "Countess")
    assert (changed.status, changed.headers["etag"]) == (200, '"2"')
    assert read(users, path).json() == changed.json()
    assert changed.json()["updated_at"] > first.json()["updated_at"]


def test_a_retried_creation_keeps_a_later_edit(users: ServedUsers) -> None:
    """The layer sends it again if its answer is lost; by then another client may have renamed."""
    path = create(users)
    renamed = rename(users, path, "Countess")
    values, claims = (path.rpartition("/")[2], ADA, "Ada"), {"sub": str(ADA)}
    row = users.module.db.execute(users.module.INSERT, values, claims=claims).fetchone()
    assert row["name"] == renamed.json()["name"] == read(users, path).json()["name"]


def test_an_edit_of_another_version_is_412(users: ServedUsers) -> None:
    """The row stays, and one of several versions is enough."""
    path = create(users)
    assert rename(users, path, "Bea", if_match='"1"').status == 200
    late = rename(users, path, "Cleo", if_match='"1"')
    assert (late.status, late.problem) == (412, "precondition-failed")
    assert read(users, path).json()["name"] == "Bea"
    assert rename(users, path, "Dora", if_match='"1", "2"').status == 200
    assert rename(users, path, "Elsa", if_match="*").status == 200


@pytest.mark.parametrize("tag", ['W/"1"', '"one"', '"99999999999999999999"'])
def test_a_tag_that_no_version_has_matches_none(users: ServedUsers, tag: str) -> None:
    """A weak tag is no strong one, and the others name no version."""
    assert rename(users, create(users), "Bea", if_match=tag).status == 412


def test_a_malformed_if_match_is_400(users: ServedUsers) -> None:
    """An edit that its client wanted to be conditional is never done without the condition."""
    path = create(users)
    refused = rename(users, path, "Bea", if_match="1")
    assert (refused.status, refused.problem) == (400, "malformed-if-match")
    assert read(users, path).json()["version"] == 1


def test_an_unknown_user_is_404_whatever_the_version(users: ServedUsers) -> None:
    """So is another owner's: 412 would show that it is there."""
    path = create(users)
    for tag in ('"1"', '"7"'):
        missing = rename(users, f"/users/{uuid.uuid4()}", "Bea", if_match=tag)
        body = {"name": "Eve's"}
        others = users.call("PATCH", path, body, subject=EVE, if_match=tag)
        assert (missing.status, missing.problem) == (404, "not-found")
        assert (others.status, others.problem) == (404, "not-found")
    assert users.call("GET", path, subject=EVE).problem == "not-found"


def test_a_version_that_the_client_has_is_304(users: ServedUsers) -> None:
    """Without a body; weak tags count, and a malformed header does not."""
    path = create(users)
    for tag in ('"1"', 'W/"1"', '"0", "1"', "*"):
        reply = read(users, path, if_none_match=tag)
        assert (reply.status, reply.body, reply.headers["etag"]) == (304, b"", '"1"')
    for tag in ('"2"', "1", ""):
        assert read(users, path, if_none_match=tag).status == 200


def test_a_request_with_a_key_is_served_once(users: ServedUsers) -> None:
    """The repetition gets the first answer, with its ETag, though the user has changed since."""
    posted = {"name": "Ada"}
    first = users.call("POST", "/users", posted, subject=ADA, idempotency_key="a-post")
    path = first.headers["location"]
    patched = rename(users, path, "Bea", idempotency_key="a-patch", if_match='"1"')
    rename(users, path, "Cleo")
    for reply, again in (
        (first, users.call("POST", "/users", posted, subject=ADA, idempotency_key='"a-post"')),
        (patched, rename(users, path, "Bea", idempotency_key="a-patch", if_match='"1"')),
        (patched, rename(users, path, "Bea", idempotency_key="a-patch")),
    ):
        assert (again.status, again.body) == (reply.status, reply.body)
        assert again.headers["etag"] == reply.headers["etag"]
        assert again.headers["idempotent-replayed"] == "true"
        assert "idempotent-replayed" not in reply.headers
    assert again.headers.get("location") is None
    assert read(users, path).json()["name"] == "Cleo"


def test_a_key_belongs_to_a_caller_and_a_request(users: ServedUsers) -> None:
    """Another request with it is 422; another caller has keys of the same characters."""
    path = create(users, idempotency_key="shared")
    reused = users.call("POST", "/users", {"name": "Bea"}, subject=ADA, idempotency_key="shared")
    assert (reused.status, reused.problem) == (422, "idempotency-key-reused")
    eves = users.call("POST", "/users", {"name": "Ada"}, subject=EVE, idempotency_key="shared")
    assert eves.status == 201
    assert eves.headers["location"] != path


def test_a_failed_change_is_not_stored(users: ServedUsers) -> None:
    """The key of a 412 or a 404 is free for the next attempt."""
    path = create(users)
    assert rename(users, path, "Bea", if_match='"5"', idempotency_key="late").status == 412
    assert rename(users, path, "Bea", if_match='"1"', idempotency_key="late").status == 200
    missing = f"/users/{uuid.uuid4()}"
    for _ in range(2):
        assert rename(users, missing, "Bea", idempotency_key="missing").status == 404


def test_a_stage_can_require_keys_and_versions(strict: ServedUsers) -> None:
    """Then what lacks one is refused, and nothing is changed."""
    body = {"name": "Ada"}
    refused = strict.call("POST", "/users", body, subject=ADA)
    assert (refused.status, refused.problem) == (400, "idempotency-key-missing")
    path = create(strict, idempotency_key=str(uuid.uuid4()))
    refused = rename(strict, path, "Bea", if_match='"1"')
    assert (refused.status, refused.problem) == (400, "idempotency-key-missing")
    refused = rename(strict, path, "Bea", idempotency_key=str(uuid.uuid4()))
    assert (refused.status, refused.problem) == (428, "precondition-required")
    assert read(strict, path).json()["version"] == 1
    assert rename(strict, path, "Bea", idempotency_key="k", if_match='"1"').status == 200


def test_a_body_over_the_stage_s_limit_is_413(users: ServedUsers, strict: ServedUsers) -> None:
    """Before it is parsed; the default is 64 KB, which spaces around a name may fill."""
    padded = {"name": "Ada" + " " * 200}
    assert users.call("POST", "/users", padded, subject=ADA).status == 201
    refused = strict.call("POST", "/users", padded, subject=ADA, idempotency_key="long")
    assert (refused.status, refused.problem) == (413, "body-too-large")
    refused = users.call("POST", "/users", b"{" * 65_537, subject=ADA)
    assert (refused.status, refused.problem) == (413, "body-too-large")


def test_pages_have_versions(users: ServedUsers) -> None:
    """So an edit of what was listed needs no other read."""
    subject = uuid.uuid4()
    for name in ("Ada", "Bea", "Cleo"):
        users.call("POST", "/users", {"name": name}, subject=subject)
    page = users.call("GET", "/users?limit=2", subject=subject).json()
    rest = users.call("GET", f"/users?limit=2&after={page['next']}", subject=subject).json()
    assert [each["version"] for each in (*page["users"], *rest["users"])] == [1, 1, 1]
    assert rest["next"] is None


def test_a_name_is_stored_without_the_spaces_around_it(users: ServedUsers) -> None:
    """Also those that are not ASCII, which the CHECK does not know."""
    assert read(users, create(users, "\u2003 Ada Lovelace\u00a0")).json()["name"] == "Ada Lovelace"
    longest = "\U0001f600" * 50
    assert read(users, create(users, longest)).json()["name"] == longest


def test_a_post_without_a_key_is_one_round_trip(
    users: ServedUsers, target: Target, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one `db.execute`, in one round trip."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a transaction was begun")

    monkeypatch.setattr(users.module.db, "run_transaction", refuse)
    create(users)
