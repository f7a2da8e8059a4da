"""The load generator, against servers with good and bad answers."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.http.load import Outcome, fire

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes"


@contextmanager
def server(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Answer each connection like this and close it; yield the URL and the requests."""
    asked: list[bytes] = []
    loop = asyncio.new_event_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        writer.close()

    listening = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/a/b", asked
    finally:
        loop.call_soon_threadsafe(listening.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def causes(outcomes: list[Outcome]) -> set[tuple[int, str]]:
    """Return the outcomes of requests, without their durations."""
    return {(outcome.status, outcome.cause) for outcome in outcomes}


def test_every_request_is_sent_over_a_connection_of_its_own() -> None:
    """With the path and the token."""
    with server(WHOLE) as (url, asked):
        outcomes, seconds = fire(url, "t", 5)
    assert causes(outcomes) == {(200, "")}
    assert max(outcome.seconds for outcome in outcomes) <= seconds
    assert len(asked) == 5
    assert all(head.startswith(b"GET /a/b HTTP/1.1\r\n") for head in asked)
    assert all(b"\r\nAuthorization: Bearer t\r\n" in head for head in asked)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (b"HTTP/1.1 503 Gone\r\nContent-Length: 4\r\n\r\nbusy", (503, "503 busy")),
        (WHOLE[:-1], (0, "half an answer")),
        (WHOLE[:20], (0, "half an answer")),
        (b"", (0, "half an answer")),
    ],
    ids=["503", "half a body", "half a head", "nothing"],
)
def test_what_is_not_a_whole_200_has_failed(answer: bytes, outcome: tuple[int, str]) -> None:
    """And its cause says why."""
    with server(answer) as (url, _):
        assert causes(fire(url, "t", 2)[0]) == {outcome}


def test_a_server_that_is_not_there_is_a_cause_too() -> None:
    """Nothing is raised."""
    outcomes, _ = fire(f"http://127.0.0.1:{processes.free_port()}/", "t", 1)
    assert causes(outcomes) == {(0, "ConnectionRefusedError")}


def test_no_answer_in_time_is_one_as_well() -> None:
    """The timeout is the caller's."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        assert causes(fire(url, "t", 1, timeout=0.1)[0]) == {(0, "TimeoutError")}
