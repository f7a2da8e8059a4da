"""What a function reads of a request by lambda_pg.http_api, and what is refused."""

import base64
import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lambda_pg.http_api import Problem, Request, Rules
from lambda_pg.http_api.bodies import MAX_DEPTH, is_deep

from tests.support.http_events import SUBJECT, http_event

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
ANYTHING = st.text(max_size=40)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda each: st.lists(each) | st.dictionaries(st.text(), each),
)
"""What an event of JSON can hold."""
LENIENT = Rules()
STRICT = Rules(require_idempotency_key=True, require_if_match=True)


def refusal(call: Callable[[], object]) -> tuple[int, str]:
    """Return status and name of the problem that a call ends with."""
    with pytest.raises(Problem) as seen:
        call()
    return seen.value.status, seen.value.name


def status_of(call: Callable[[], object]) -> int:
    """Return the status of the problem that a call ends with, or 200."""
    try:
        call()
    except Problem as problem:
        return problem.status
    return 200


def with_header(name: str, value: str, rules: Rules = LENIENT) -> Request:
    """Give a request with one more header."""
    return Request.of(http_event(headers={name: value}), rules)


def with_body(body: str | bytes, content_type: str = "application/json") -> Request:
    """Give a request with a body."""
    return Request.of(http_event(body=body, headers={"content-type": content_type}))


def test_a_request_has_the_parts_of_its_event() -> None:
    """Each by its name, the headers in lower case."""
    event = http_event(
        "PATCH /notes/{id}",
        '{"text": "a"}',
        headers={"X-Some-Name": "Value"},
        parameters={"id": SUBJECT},
        rawQueryString="a=1&b=%20",
    )
    request = Request.of(event)
    assert (request.id, request.method) == ("request-1", "PATCH")
    assert (request.path, request.route) == (f"/notes/{SUBJECT}", "/notes/{id}")
    assert (request.query, request.parameters) == ("a=1&b=%20", {"id": SUBJECT})
    assert request.headers["x-some-name"] == "Value"
    assert (request.body, request.json()) == (b'{"text": "a"}', {"text": "a"})
    assert request.uuid("id") == uuid.UUID(SUBJECT)
    assert request.claims == {"sub": SUBJECT}


def test_a_request_without_a_body_has_no_bytes() -> None:
    """API Gateway leaves the body out."""
    event = http_event("GET /notes")
    del event["body"], event["pathParameters"], event["headers"], event["rawQueryString"]
    request = Request.of(event)
    assert (request.body, request.parameters, request.headers, request.query) == (b"", {}, {}, "")
    assert request.idempotency_key is None


@pytest.mark.parametrize(
    ("body", "size"), [("a" * 100, 100), ("é" * 50, 100), (b"\xff" * 100, 100), (b"", 0)]
)
def test_a_body_of_the_limit_is_read(body: str | bytes, size: int) -> None:
    """The limit counts bytes, whatever they are sent in."""
    request = Request.of(http_event(body=body), Rules(max_body=max(size, 1)))
    assert len(request.body) == size


@pytest.mark.parametrize("body", ["a" * 101, "é" * 51, b"\xff" * 101, b"\xff" * 102])
def test_a_body_over_the_limit_is_refused(body: str | bytes) -> None:
    """With 413."""
    event = http_event(body=body)
    assert refusal(lambda: Request.of(event, Rules(max_body=100))) == (413, "body-too-large")


def test_a_large_body_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is clearly too large costs no work."""

    def decode(*_: object, **__: object) -> bytes:
        raise AssertionError("decoded")

    event = http_event(body=b"\xff" * 200)
    monkeypatch.setattr(base64, "b64decode", decode)
    assert refusal(lambda: Request.of(event, Rules(max_body=100)))[0] == 413


@given(st.binary(max_size=60), st.integers(1, 60))
def test_no_body_within_the_limit_is_refused(body: bytes, limit: int) -> None:
    """And none over it is read."""
    event = http_event(body=body)
    if len(body) <= limit:
        assert Request.of(event, Rules(max_body=limit)).body == body
    else:
        assert refusal(lambda: Request.of(event, Rules(max_body=limit)))[0] == 413


@pytest.mark.parametrize("body", ["a", "====", "YQ", "é", "Y Q=="])
def test_what_is_no_base64_is_refused(body: str) -> None:
    """API Gateway does not send it; a test, or another caller of the function, may."""
    event = http_event(body=body, isBase64Encoded=True)
    assert refusal(lambda: Request.of(event)) == (400, "malformed-body")


@pytest.mark.parametrize(
    "authorizer",
    [
        None,
        {},
        {"jwt": None},
        {"jwt": {}},
        {"jwt": {"claims": None}},
        {"jwt": {"claims": {}}},
        {"jwt": {"claims": {"sub": "nobody"}}},
        {"jwt": {"claims": {"sub": ""}}},
        {"jwt": {"claims": {"sub": None}}},
        {"jwt": {"claims": {"sub": 7}}},
        {"jwt": {"claims": {"sub": ["a"]}}},
        {"lambda": {"sub": SUBJECT}},
    ],
)
def test_a_token_without_a_subject_is_refused(authorizer: Any) -> None:
    """Whatever is missing, and also where a route has no authorizer."""
    event = http_event()
    event["requestContext"]["authorizer"] = authorizer
    assert refusal(lambda: Request.of(event).claims) == (403, "no-subject")
    del event["requestContext"]["authorizer"]
    assert refusal(lambda: Request.of(event).claims) == (403, "no-subject")


def test_a_cookie_names_nobody() -> None:
    """Neither as a header nor as API Gateway hands cookies over."""
    event = http_event(
        headers={"cookie": f"sub={SUBJECT}", "origin": "https://a.test"},
        cookies=[f"sub={SUBJECT}"],
    )
    del event["requestContext"]["authorizer"]
    assert refusal(lambda: Request.of(event).claims) == (403, "no-subject")


@pytest.mark.parametrize("value", ["1", "", "é", "{}", "6f2b1c1e"])
def test_a_parameter_that_is_no_uuid_is_named(value: str) -> None:
    """The problem has the field."""
    request = Request.of(http_event("GET /notes/{id}", parameters={"id": value}))
    with pytest.raises(Problem) as seen:
        request.uuid("id")
    assert (seen.value.status, seen.value.name) == (422, "invalid-fields")
    assert seen.value.errors == [{"field": "id", "detail": "must be a UUID"}]


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        " application/json ; charset=utf-8",
        "application/json;charset=latin-1",
        "application/merge-patch+json",
        "application/vnd.a.b-c+json; q=1",
    ],
)
def test_json_is_declared_in_several_ways(content_type: str) -> None:
    """The parameters mean nothing: JSON is always UTF-8."""
    assert with_body("[1]", content_type).json() == [1]


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "application/jsonp",
        "application/+json",
        "application/json,application/json",
        "application/xml+jsonx",
        "x-application/json",
    ],
)
def test_another_type_is_refused(content_type: str) -> None:
    """A form of another site can send text/plain without asking: it is never parsed."""
    assert refusal(with_body("[1]", content_type).json) == (415, "not-json")


def test_a_body_without_a_type_is_refused() -> None:
    """No guess is made."""
    event = http_event(body="{}")
    del event["headers"]["content-type"]
    assert refusal(Request.of(event).json) == (415, "not-json")


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip", "GZIP"])
def test_a_compressed_body_is_refused(coding: str) -> None:
    """The limit counts the bytes that came, so nothing is expanded."""
    event = http_event(body=b"\x1f\x8b", headers={"content-encoding": coding})
    assert refusal(Request.of(event).json) == (415, "encoded-body")


def test_a_body_that_is_declared_as_it_is_is_read() -> None:
    """The coding `identity` is none."""
    event = http_event(body="1", headers={"content-encoding": " Identity "})
    assert Request.of(event).json() == 1


@pytest.mark.parametrize(
    "body",
    [
        "",
        " ",
        "{",
        "{]",
        "nul",
        "1 2",
        "NaN",
        "[Infinity]",
        "[-Infinity]",
        "1e999",
        "[-1e999]",
        "9" * 5000,
        '{"a": 1, "a": 2}',
        '[{"b": {"a": 1, "a": 1}}]',
        r'"\ud800"',
        r'{"\uDFFF": 1}',
        r'["\udc00\ud800"]',
        '"\n"',
        "\ufeff1",
        b"\xff",
        b'"\xed\xa0\x80"',
        "1".encode("utf-16"),
        "'a'",
        "[1,]",
    ],
)
def test_what_is_no_json_is_refused(body: str | bytes) -> None:
    """Also what Python reads without a word: NaN, a name twice, half of a surrogate pair."""
    assert refusal(with_body(body).json) == (400, "malformed-json")


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (r'"\ud83d\ude00"', "😀"),
        (r'"\\ud800"', r"\ud800"),
        ('"😀"', "😀"),
        ("1e30", 1e30),
        ('{"a": 1, "b": {"a": 2}}', {"a": 1, "b": {"a": 2}}),
        ('"' + "[" * 100 + '"', "[" * 100),
        (json.dumps(["[", '"{', "\\"] * 40), ["[", '"{', "\\"] * 40),
        ("[" + "[]," * 100 + "[]]", [[]] * 101),
    ],
)
def test_json_is_read(body: str, value: object) -> None:
    """Brackets in strings, and beside each other, do not nest."""
    assert with_body(body).json() == value


@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}")])
def test_json_is_nested_up_to_the_limit(begin: str, end: str) -> None:
    """One level more is refused, before anything is parsed: the brackets need no end."""
    allowed, more = (begin * depth + "1" + end * depth for depth in (MAX_DEPTH, MAX_DEPTH + 1))
    with_body(allowed).json()
    assert refusal(with_body(more).json) == (400, "too-deep")
    assert refusal(with_body(begin * 9000).json) == (400, "too-deep")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
)


def depth(value: object) -> int:
    """Count how deeply lists and dictionaries are nested."""
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(JSON, st.booleans(), st.integers(0, 5))
def test_the_depth_is_that_of_the_parsed_value(value: object, ascii_only: bool, limit: int) -> None:
    """Whatever its strings contain."""
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert is_deep(text, limit) == (depth(value) > limit)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("part", [b'"\\', b'\\"', b"\\", b'"', b"[]", b'"]'])
def test_the_look_for_depth_looks_at_each_byte_once(part: bytes) -> None:
    """Strings that do not end would keep it busy for an hour otherwise."""
    assert not is_deep(b"[]" * 33 + part * 500_000, MAX_DEPTH)


KEYS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255)


def quoted(key: str) -> str:
    """Write a string of structured fields."""
    escaped = key.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@given(KEYS)
@example("a" * 255)
@example('"' * 255)
def test_both_forms_of_a_key_are_one_key(key: str) -> None:
    """The draft's quoted string, and the bare text that Stripe's clients send."""
    assert with_header("Idempotency-Key", quoted(key)).idempotency_key == key
    if not key.startswith('"'):
        assert with_header("Idempotency-Key", f" {key}\t").idempotency_key == key


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        '""',
        '"',
        '"a',
        '"a"b"',
        '"a\\"',
        '"a\\b"',
        '"a b"',
        "a b",
        '"a";b=1',
        '"a", "b"',
        "é",
        '"é"',
        "a\x7f",
        "a\x00",
        "a\nb",
        "a" * 256,
        f'"{"a" * 256}"',
        "\uff21",
    ],
)
def test_what_is_no_key_is_refused(value: str) -> None:
    """Empty, too long, not visible, not ASCII, or badly quoted."""
    request = with_header("idempotency-key", value)
    assert refusal(lambda: request.idempotency_key) == (400, "malformed-idempotency-key")
    assert refusal(request.require_key) == (400, "malformed-idempotency-key")


def test_a_key_is_required_where_the_stage_says_so() -> None:
    """Elsewhere there is none."""
    request = Request.of(http_event())
    assert (request.idempotency_key, request.require_key()) == (None, None)
    strict = Request.of(http_event(), STRICT)
    assert strict.idempotency_key is None
    assert refusal(strict.require_key) == (400, "idempotency-key-missing")
    assert with_header("idempotency-key", "a", STRICT).require_key() == "a"


@pytest.mark.parametrize(
    ("value", "versions"),
    [
        ("*", None),
        (" * ", None),
        ('"7"', [7]),
        ('"7","8" , "9"', [7, 8, 9]),
        (', "7" ,,', [7]),
        ('W/"7"', []),
        ('W/"7", "8"', [8]),
        ('"0"', [0]),
        ('"07"', []),
        ('"+7"', []),
        ('"-7"', []),
        ('"7 "', None),
        ('"x"', []),
        ('""', []),
        ('"٣"', []),
        ('"\udcff", "7"', [7]),
        ('"1_0"', []),
        ('"9223372036854775807"', [2**63 - 1]),
        ('"9223372036854775808"', []),
        (f'"{"9" * 5000}"', []),
        ('"a,b", "2"', [2]),
    ],
)
def test_the_versions_of_if_match(value: str, versions: list[int] | None) -> None:
    """Weak tags, and tags that no row can have, match nothing; `*` matches every row."""
    request = with_header("If-Match", value, STRICT)
    if versions is None and value.strip() != "*":
        assert refusal(request.expected_versions) == (400, "malformed-if-match")
    else:
        assert request.expected_versions() == versions


@pytest.mark.parametrize(
    "value", ["", " ", ",", "7", '"7', '7"', '"7" "8"', 'w/"7"', "W/7", '*, "7"', '"7";', "**"]
)
def test_a_malformed_if_match_is_refused(value: str) -> None:
    """A change that its client meant to be conditional is never made without the condition."""
    request = with_header("if-match", value)
    assert refusal(request.expected_versions) == (400, "malformed-if-match")


def test_if_match_is_required_where_the_stage_says_so() -> None:
    """Elsewhere every version may be changed."""
    assert Request.of(http_event()).expected_versions() is None
    strict = Request.of(http_event(), STRICT)
    assert refusal(strict.expected_versions) == (428, "precondition-required")


@pytest.mark.parametrize(
    ("value", "has"),
    [
        ('"7"', True),
        ('W/"7"', True),
        ('"6", W/"7"', True),
        ("*", True),
        ('"6"', False),
        ('"x"', False),
        ("7", False),
        ("", False),
        ('"7', False),
    ],
)
def test_if_none_match_is_compared_weakly(value: str, has: bool) -> None:
    """A malformed header has no version, and gets the whole answer."""
    assert with_header("If-None-Match", value).has_version(7) is has
    assert Request.of(http_event()).has_version(7) is False


HEADERS = st.dictionaries(
    st.sampled_from(
        ["Idempotency-Key", "If-Match", "If-None-Match", "Content-Type", "Content-Encoding"]
    ),
    ANYTHING | st.sampled_from(['"a"', 'W/"1"', "*", "application/json", "identity", '"1", "2"']),
)
BODIES = st.binary(max_size=80) | ANYTHING | JSON.map(json.dumps)


@given(HEADERS, BODIES, st.booleans(), st.sampled_from([Rules(max_body=40), STRICT]))
def test_nothing_but_a_problem_leaves(
    headers: dict[str, str], body: str | bytes, encoded: bool, rules: Rules
) -> None:
    """Whatever a client sends, it gets an answer, which says nothing of what it has sent."""
    event = http_event(body=body, headers=headers)
    event["isBase64Encoded"] = encoded or isinstance(body, bytes)
    status = status_of(lambda: Request.of(event, rules))
    assert status in {200, 400, 413}
    if status == 200:
        request = Request.of(event, rules)
        assert status_of(request.json) in {200, 400, 415}
        assert status_of(request.require_key) in {200, 400}
        assert status_of(request.expected_versions) in {200, 400, 428}
        assert status_of(lambda: request.has_version(1)) == 200


@pytest.mark.parametrize(
    "subject",
    [
        f"{{{SUBJECT}}}",
        f"urn:uuid:{SUBJECT}",
        SUBJECT.replace("-", ""),
        f"{SUBJECT[:3]}-{SUBJECT[3:]}",
        f"+{SUBJECT[1:]}",
        f"{SUBJECT[0]}_{SUBJECT[2:]}",
        f"\N{ARABIC-INDIC DIGIT SIX}{SUBJECT[1:]}",
        f"{SUBJECT}\n",
    ],
)
def test_another_text_is_never_the_same_user(subject: str) -> None:
    """UUID() reads them all; an issuer may have two users whose subjects differ like this."""
    request = Request.of(http_event(claims={"sub": subject}))
    assert refusal(lambda: request.claims) == (403, "no-subject")


def test_a_subject_has_no_case() -> None:
    """PostgreSQL shows UUIDs in lower case, and the database compares UUIDs, not texts."""
    request = Request.of(http_event(claims={"sub": SUBJECT.upper()}))
    assert request.claims == {"sub": SUBJECT}


@given(VALUES | st.text() | st.uuids().map(str))
def test_no_subject_leads_to_another_error(subject: object) -> None:
    """It is a UUID, or there is none."""
    request = Request.of(http_event(claims={"sub": subject}))
    if status_of(lambda: request.claims) != 403:
        assert str(uuid.UUID(request.claims["sub"])) == request.claims["sub"]
