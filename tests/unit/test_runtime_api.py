"""The Runtime API's protocol, without a socket."""

import pytest

from local.environments.protocol import ProtocolError, Request, RequestReader, render_response

NEXT = b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: 127.0.0.1:9001\r\n\r\n"
ANSWER = b"POST /x HTTP/1.1\r\nContent-Length: 5\r\nX-Name:  a: b \r\n\r\nhello"


def test_a_request_is_complete_when_its_last_byte_is_there() -> None:
    """Cut at every possible place, the same two requests come out."""
    stream = NEXT + ANSWER
    for cut in range(len(stream)):
        reader = RequestReader()
        requests = [*reader.feed(stream[:cut]), *reader.feed(stream[cut:])]
        assert [request.method for request in requests] == ["GET", "POST"]
        assert requests[1] == Request(
            "POST", "/x", {"content-length": "5", "x-name": "a: b"}, b"hello"
        )


def test_a_body_may_hold_what_looks_like_a_head() -> None:
    """The length alone decides where a body ends."""
    body = b"\r\n\r\nGET / HTTP/1.1\r\n\r\n"
    head = f"POST /x HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    (request,) = RequestReader().feed(head + body)
    assert request.body == body


@pytest.mark.parametrize(
    "bad",
    [
        b"\x16\x03\x01\r\n\r\n",
        b"GET /x\r\n\r\n",
        b"GET /x HTTP/1.1\r\nnonsense\r\n\r\n",
        b"POST /x HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_what_no_runtime_client_sends_is_refused(bad: bytes) -> None:
    """TLS, half a request line, chunks: an error, not a guess."""
    with pytest.raises(ProtocolError):
        RequestReader().feed(bad)


def test_a_head_without_end_is_refused() -> None:
    """A peer cannot make the cloud hold any amount of memory."""
    with pytest.raises(ProtocolError, match="head"):
        RequestReader().feed(b"GET /x HTTP/1.1\r\n" + b"a" * 1_300_000)


def test_a_response_is_one_buffer() -> None:
    """One write carries it, so that no half waits for the peer's acknowledgement."""
    assert render_response(202, {"X-Y": "z"}, b"ok") == (
        b"HTTP/1.1 202 Accepted\r\nX-Y: z\r\nContent-Length: 2\r\n\r\nok"
    )
