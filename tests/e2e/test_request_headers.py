"""Headers as no client should send them: each has the right answer, and none is a 500.

The local API joins headers of one name with commas, as API Gateway does. What API Gateway does with
bytes that are not ASCII is not known; the local API hands them to the function.
"""

import http.client
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from lambda_pg.http_api.problems import KINDS

from lambda_pg_cdk.local.cloud import LocalCloud

Header = tuple[str, bytes]
MOST_HEAD = 10_240
"""Bytes of the request line and the headers that an HTTP API accepts."""

JSON: Header = ("Content-Type", b"application/json")
KEY, MATCH, NONE_MATCH = "Idempotency-Key", "If-Match", "If-None-Match"
TYPE, ENCODING = "Content-Type", "Content-Encoding"


@dataclass(frozen=True)
class Reply:
    """What a client gets; the names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> str:
        """The name of the problem. Fails if the body is not that of a refusal by the function."""
        problem = json.loads(self.body)
        assert self.headers["content-type"] == "application/problem+json", self
        assert problem["status"] == self.status
        assert problem["instance"] == self.headers["apigw-requestid"]
        name: str = problem["type"].removeprefix("docs/problems.md#")
        assert KINDS[name].title == problem["title"]
        return name


class Sender:
    """A client that sends headers as they are, with a valid token."""

    def __init__(self, cloud: LocalCloud) -> None:
        """Choose a subject, and connect."""
        self._token = cloud.token(str(uuid.uuid4())).encode()
        self._connection = http.client.HTTPConnection(urlsplit(cloud.url).netloc, timeout=35)

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()

    def send(
        self, method: str, path: str, headers: Sequence[Header] = (), body: bytes = b""
    ) -> Reply:
        """Send one request."""
        connection = self._connection
        connection.putrequest(method, path, skip_accept_encoding=True)
        connection.putheader("Authorization", b"Bearer " + self._token)
        connection.putheader("Content-Length", str(len(body)))
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        received = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, received, response.read())

    def length_of_head(self, method: str, path: str) -> int:
        """Count what a request without more headers has of MOST_HEAD."""
        host = f"{self._connection.host}:{self._connection.port}"
        lines = f"{method} {path} HTTP/1.1Host: {host}Authorization: Bearer Content-Length: 0"
        return len(lines) + len(self._token)


@pytest.fixture(scope="module")
def sender(cloud: LocalCloud) -> Iterator[Sender]:
    """A client of the running API."""
    made = Sender(cloud)
    yield made
    made.close()


BODIES = {"/users": b'{"name": "Ada"}', "/notes": b'{"text": "Ada"}'}
"""Of the collections, what creates a row."""


@pytest.fixture(scope="module")
def rows(sender: Sender) -> dict[str, str]:
    """A row of each collection: its path."""
    made = {path: sender.send("POST", path, [JSON], body) for path, body in BODIES.items()}
    return {path: reply.headers["location"] for path, reply in made.items()}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([b"%s"], None),
        ([b'"%s"'], None),
        ([b" %s\t"], None),
        ([b"%s!#$&'()*+,/:;=?@[]"], None),
        ([b"%s" + 219 * b"x"], None),
        ([b"%s" + 220 * b"x"], "malformed-idempotency-key"),
        ([b"%s" + 9_000 * b"x"], "malformed-idempotency-key"),
        ([b""], "malformed-idempotency-key"),
        ([b'""'], "malformed-idempotency-key"),
        ([b'"%s'], "malformed-idempotency-key"),
        ([b"%s %s"], "malformed-idempotency-key"),
        ([b"%s\xc3\xa9"], "malformed-idempotency-key"),
        ([b"%s\xff"], "malformed-idempotency-key"),
        ([b'"%s"', b'"%s"'], "malformed-idempotency-key"),
        ([b'"%s";a=1'], "malformed-idempotency-key"),
    ],
)
def test_idempotency_keys(
    sender: Sender, path: str, values: Sequence[bytes], problem: str | None
) -> None:
    """1 to 255 visible ASCII characters, bare or quoted; %s is a new value of 36 characters."""
    new = str(uuid.uuid4()).encode()
    headers = [JSON, *((KEY, value.replace(b"%s", new)) for value in values)]
    require(sender.send("POST", path, headers, BODIES[path]), 201, problem)


def require(reply: Reply, status: int, problem: str | None) -> None:
    """Require a success, or a refusal by its name."""
    assert reply.status == (status if problem is None else KINDS[problem].status), reply
    assert problem is None or reply.problem == problem


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([b'"%d"'], None),
        ([b"*"], None),
        ([b' , "x" ,"%d"\t,'], None),
        ([b'"0"', b'"%d"'], None),
        ([b'"\xff", "%d"'], None),
        ([b'"\xe2\x98\x83", "%d"'], None),
        ([1_200 * b'"x", ' + b'"%d"'], None),
        ([b'W/"%d"'], "precondition-failed"),
        ([b'"0%d"'], "precondition-failed"),
        ([b'"x"'], "precondition-failed"),
        ([b'""'], "precondition-failed"),
        ([b'"' + 9_000 * b"9" + b'"'], "precondition-failed"),
        ([b""], "malformed-if-match"),
        ([b","], "malformed-if-match"),
        ([b"%d"], "malformed-if-match"),
        ([b'"%d'], "malformed-if-match"),
        ([b'*, "%d"'], "malformed-if-match"),
        ([b"*", b"*"], "malformed-if-match"),
        ([b'w/"%d"'], "malformed-if-match"),
        ([b"\xff"], "malformed-if-match"),
    ],
)
def test_if_match(
    sender: Sender, rows: dict[str, str], values: Sequence[bytes], problem: str | None
) -> None:
    """A list of tags, or *; %d is the version that the row has."""
    path = rows["/users"]
    version = json.loads(sender.send("GET", path).body)["version"]
    headers = [JSON, *((MATCH, value.replace(b"%d", b"%d" % version)) for value in values)]
    require(sender.send("PATCH", path, headers, b'{"name": "Eve"}'), 200, problem)


@pytest.mark.parametrize("collection", BODIES)
@pytest.mark.parametrize(
    ("values", "status"),
    [
        ([b'"%d"'], 304),
        ([b'W/"%d"'], 304),
        ([b"*"], 304),
        ([b'"x"', b'"\xff"', b'"%d"'], 304),
        ([1_200 * b'"x", ' + b'"%d"'], 304),
        ([b'"0"'], 200),
        ([b""], 200),
        ([b"%d"], 200),
        ([b"\xff"], 200),
        ([9_000 * b"*"], 200),
    ],
)
def test_if_none_match(
    sender: Sender, rows: dict[str, str], collection: str, values: Sequence[bytes], status: int
) -> None:
    """A malformed one matches nothing; %d is the version that the row has."""
    path = rows[collection]
    version = json.loads(sender.send("GET", path).body)["version"]
    headers = [(NONE_MATCH, value.replace(b"%d", b"%d" % version)) for value in values]
    reply = sender.send("GET", path, headers)
    assert (reply.status, reply.headers["etag"]) == (status, f'"{version}"')
    assert (reply.body == b"") is (status == 304)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ([(TYPE, b"application/json")], None),
        ([(TYPE, b"Application/JSON;charset=UTF-8")], None),
        ([(TYPE, b"application/merge-patch+json")], None),
        ([(TYPE, b"application/json; charset=latin-1")], None),
        ([(TYPE, b"application/json; " + 9_000 * b"x")], None),
        ([JSON, (ENCODING, b"identity")], None),
        ([], "not-json"),
        ([(TYPE, b"")], "not-json"),
        ([(TYPE, b"text/plain")], "not-json"),
        ([(TYPE, b"application/jsonp")], "not-json"),
        ([(TYPE, b"application/json\xff")], "not-json"),
        ([(TYPE, b"application/x-www-form-urlencoded")], "not-json"),
        ([(TYPE, b"multipart/form-data; boundary=x")], "not-json"),
        ([(TYPE, b"application/octet-stream")], "not-json"),
        ([JSON, (ENCODING, b"gzip")], "encoded-body"),
        ([JSON, (ENCODING, b"identity"), (ENCODING, b"gzip")], "encoded-body"),
        ([JSON, (ENCODING, b"\xff")], "encoded-body"),
    ],
)
def test_types_and_encodings(
    sender: Sender, path: str, headers: Sequence[Header], problem: str | None
) -> None:
    """Only JSON that is not compressed; its charset means nothing."""
    require(sender.send("POST", path, headers, BODIES[path]), 201, problem)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("charset", ["", "; charset=latin-1", "; charset=utf-16"])
def test_json_is_utf_8(sender: Sender, path: str, charset: str) -> None:
    """Whatever the charset says."""
    kind: Header = (TYPE, f"application/json{charset}".encode())
    for encoding in ("latin-1", "utf-16"):
        body = BODIES[path].decode().replace("Ada", "Zoë").encode(encoding)
        require(sender.send("POST", path, [kind], body), 201, "malformed-json")
    require(
        sender.send("POST", path, [kind], BODIES[path].replace(b"Ada", "Zoë".encode())), 201, None
    )


@pytest.mark.parametrize("name", [KEY, NONE_MATCH, TYPE, "Accept-Language", "Cookie", "X-A"])
def test_the_largest_head(sender: Sender, rows: dict[str, str], name: str) -> None:
    """10,240 bytes reach the function; for one more, API Gateway refuses the request."""
    for path in rows.values():
        left = MOST_HEAD - sender.length_of_head("GET", path) - len(f"{name}: ")
        assert sender.send("GET", path, [(name, left * b"x")]).status == 200
        refused = sender.send("GET", path, [(name, (left + 1) * b"x")])
        assert (refused.status, set(json.loads(refused.body))) == (431, {"message"})


OPERATIONS = {
    ("POST", "/users"): {201, 400, 415, 422},
    ("PATCH", "/users"): {200, 400, 412, 415, 422},
    ("GET", "/users"): {200, 304},
    ("POST", "/notes"): {201, 400, 415, 422},
    ("GET", "/notes"): {200, 304},
}
"""Method and collection, and what a request with a good path and body can be answered."""

NAMES = st.sampled_from([KEY, MATCH, NONE_MATCH, TYPE, ENCODING, "Accept", "Cookie", "X-A"])
PIECES = st.sampled_from(
    [
        *(b'"', b"W/", b"*", b",", b";", b"=", b"\\", b"\t", b" ", b"1", b"0", b"-", b"a"),
        *(b"application/", b"json", b"+json", b"charset=", b"utf-8", b"gzip", b"identity"),
        *(b"\xc3\xa9", b"\xff", b"\x80"),
    ]
)
# CR, LF, NUL and other controls are no HTTP: the server refuses them before there is a request.
VISIBLE = st.integers(32, 255).filter(lambda each: each != 127).map(lambda each: bytes([each]))
WHOLE = st.sampled_from([JSON[1], b'"1"', b"*", b"identity", b"a" * 255])
VALUES = st.lists(PIECES | VISIBLE, max_size=12).map(b"".join) | WHOLE
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=6).filter(
    lambda headers: sum(name == TYPE for name, _ in headers) <= 1
)
"""The server refuses a second Content-Type before there is a request."""


@pytest.mark.parametrize("operation", OPERATIONS, ids=" ".join)
@settings(
    max_examples=200,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(headers=HEADERS)
@example(headers=[JSON])
def test_any_headers(
    sender: Sender, rows: dict[str, str], operation: tuple[str, str], headers: list[Header]
) -> None:
    """No request fails; each is answered as documented, and each refusal is problem details."""
    method, collection = operation
    path = collection if method == "POST" else rows[collection]
    body = b"" if method == "GET" else BODIES[collection]
    reply = sender.send(method, path, headers, body)
    assert reply.status in OPERATIONS[operation], reply
    if reply.status >= 400:
        assert reply.problem in KINDS
