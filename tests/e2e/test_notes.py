"""The deployed second sample: notes are created once, read, and hidden from other owners."""

import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.http.caller import Answer, call

PROBLEM = "application/problem+json"


class Client:
    """One user of the API."""

    def __init__(self, cloud: LocalCloud) -> None:
        """Choose a subject and get a token for it."""
        self._url = cloud.url
        self._token = cloud.token(str(uuid.uuid4()))

    def post(self, body: object, **headers: str) -> Answer:
        """Create a note."""
        return self.call("POST", "/notes", body, named(headers))

    def get(self, path: str, **headers: str) -> Answer:
        """Read a note."""
        return self.call("GET", path, None, named(headers))

    def call(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send one request with the token."""
        return call(self._url, method, path, self._token, body, headers=headers)


def named(headers: Mapping[str, str]) -> dict[str, str]:
    """Write headers as HTTP does: `If_None_Match` is If-None-Match."""
    return {name.replace("_", "-"): value for name, value in headers.items()}


@pytest.fixture
def ada(cloud: LocalCloud) -> Client:
    """A user of the API."""
    return Client(cloud)


@pytest.fixture
def eve(cloud: LocalCloud) -> Client:
    """Another one."""
    return Client(cloud)


def test_a_note_is_created_and_read(ada: Client) -> None:
    """201 with its place and version; a reader who has the version gets 304 without a body."""
    text = "\N{GRINNING FACE}" * 1000
    created = ada.post({"text": text})
    assert (created.status, created.headers["etag"]) == (201, '"1"')
    note = created.json()
    assert set(note) == {"id", "text", "version", "created_at"}
    assert (note["text"], note["version"]) == (text, 1)
    path = created.headers["location"]
    assert path == f"/notes/{note['id']}"
    found = ada.get(path)
    assert (found.status, found.json(), found.headers["etag"]) == (200, note, '"1"')
    unchanged = ada.get(path, If_None_Match=found.headers["etag"])
    assert (unchanged.status, unchanged.body, unchanged.headers["etag"]) == (304, "", '"1"')
    assert ada.get(path, If_None_Match='"2"').json() == note


def test_a_key_creates_one_note(ada: Client, eve: Client) -> None:
    """A repetition gets the first answer, another request 422; another caller has other keys."""
    key = str(uuid.uuid4())
    first = ada.post({"text": "once"}, Idempotency_Key=key)
    again = ada.post({"text": "once"}, Idempotency_Key=f'"{key}"')
    assert (first.status, "idempotent-replayed" in first.headers) == (201, False)
    assert (again.status, again.body) == (201, first.body)
    assert again.headers["idempotent-replayed"] == "true"
    for name in ("location", "etag", "content-type"):
        assert again.headers[name] == first.headers[name]
    other = ada.post({"text": "twice"}, Idempotency_Key=key)
    assert (other.status, other.headers["content-type"]) == (422, PROBLEM)
    assert other.json()["type"].endswith("#idempotency-key-reused")
    hers = eve.post({"text": "once"}, Idempotency_Key=key)
    assert (hers.status, "idempotent-replayed" in hers.headers) == (201, False)
    assert hers.json()["id"] != first.json()["id"]


def test_several_at_once_with_a_key_create_one_note(ada: Client) -> None:
    """All of them get the same answer, and one of them has made the note."""
    key = str(uuid.uuid4())
    with ThreadPoolExecutor(8) as threads:
        sent = [threads.submit(ada.post, {"text": "a"}, Idempotency_Key=key) for _ in range(8)]
        answers = [each.result() for each in sent]
    assert {each.status for each in answers} == {201}
    assert len({each.body for each in answers}) == 1
    assert sum("idempotent-replayed" not in each.headers for each in answers) == 1


def test_another_owners_note_is_as_unknown(ada: Client, eve: Client) -> None:
    """Nothing tells a hidden note from one that is not there."""
    path = ada.post({"text": "hers"}).headers["location"]
    hidden, missing = eve.get(path), eve.get(f"/notes/{uuid.uuid4()}")
    assert hidden.status == missing.status == 404
    told = [{**each.json(), "instance": ""} for each in (hidden, missing)]
    assert told[0] == told[1]
    assert eve.get(path, If_None_Match="*").status == 404
    assert ada.get(path).status == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/notes", "POST"), ("DELETE", f"/notes/{uuid.UUID(int=0)}", "GET")],
)
def test_a_wrong_method_is_405(ada: Client, method: str, path: str, allowed: str) -> None:
    """Allow names the right one."""
    answer = ada.call(method, path)
    assert (answer.status, answer.headers["allow"]) == (405, allowed)
    assert answer.headers["content-type"] == PROBLEM
