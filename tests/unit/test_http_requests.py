"""Requests cut out of the bytes of a connection, whatever the pieces in which they come."""

import pytest

from lambda_pg_cdk.local.http.requests import (
    MAX_HEAD_BYTES,
    Request,
    RequestReader,
    UnreadableError,
    response,
)

POST = b"POST /a/b?c HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nX-Note:  two words \r\n\r\nbody"
GET = b"GET / HTTP/1.1\r\nConnection: Close\r\n\r\n"


def read(*pieces: bytes, max_body: int = 100) -> list[Request]:
    """Feed a reader piece by piece; return the requests that it finds."""
    reader, found = RequestReader(max_body), []
    for piece in pieces:
        reader.feed(piece)
        while (request := reader.next()) is not None:
            found.append(request)
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1000])
def test_requests_are_the_same_in_pieces_of_any_size(size: int) -> None:
    """Two after each other, the first one with a body."""
    data = POST + GET
    one, two = read(*(data[at : at + size] for at in range(0, len(data), size)))
    assert (one.method, one.path, one.body, one.is_last) == (
        "POST",
        "/a/b?c",
        bytearray(b"body"),
        False,
    )
    assert one.headers == {"host": "x", "content-length": "4", "x-note": "two words"}
    assert (two.method, two.path, two.body, two.is_last) == ("GET", "/", bytearray(), True)


def test_a_body_that_is_too_large_is_read_to_its_end_and_not_kept() -> None:
    """The next request begins after it."""
    head = b"POST / HTTP/1.1\r\nContent-Length: 101\r\n\r\n"
    one, two = read(head, b"x" * 60, b"x" * 41 + GET)
    assert (one.body, two.method) == (None, "GET")


@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * MAX_HEAD_BYTES,
    ],
    ids=["chunks", "negative", "endless"],
)
def test_what_has_no_known_end_is_refused(head: bytes) -> None:
    """Nothing after it could be understood."""
    with pytest.raises(UnreadableError):
        read(head)


def test_requests_that_nobody_takes_are_bounded() -> None:
    """A client that sends on without an answer does not fill the memory."""
    reader = RequestReader(100)
    reader.feed(GET)
    with pytest.raises(UnreadableError):
        reader.feed(b"x" * (MAX_HEAD_BYTES + 100))


def test_an_answer_names_its_length() -> None:
    """After the headers that it was given."""
    answer = response(202, {"A": "b"}, b"{}")
    assert answer == b"HTTP/1.1 202 Accepted\r\nA: b\r\nContent-Length: 2\r\n\r\n{}"
