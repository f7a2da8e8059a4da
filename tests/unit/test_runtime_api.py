"""The Runtime API over a socket: the test is the runtime client, and `sleep` its process."""

import asyncio
import io
import json
import logging
import os
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator

import aiohttp
import psutil
import pytest

from lambda_pg_cdk.local.environments.environment import Environment
from lambda_pg_cdk.local.environments.invocation import Failure, Outcome
from lambda_pg_cdk.local.environments.runtime_api import API_PREFIX, MAX_PAYLOAD_BYTES

ARN = "arn:aws:lambda:us-east-1:000000000000:function:fn"


class Client:
    """A runtime client with one connection, as awslambdaric has it."""

    def __init__(self, environment: Environment, process: psutil.Process, address: str) -> None:
        """Take what the test talks to."""
        self.environment = environment
        self.process = process
        self.host, _, path = address.partition("/")
        self.prefix = f"/{path}{API_PREFIX}"
        self.asks_next = (
            f"GET {self.prefix}invocation/next HTTP/1.1\r\nHost: {self.host}\r\n\r\n".encode()
        )
        connector = aiohttp.TCPConnector(limit=1)
        self._session = aiohttp.ClientSession(f"http://{self.host}", connector=connector)

    async def next(self) -> tuple[str, bytes]:
        """Wait for work; return its request id and the event."""
        async with self._session.get(f"{self.prefix}invocation/next") as response:
            assert response.status == 200
            self.headers = response.headers
            return response.headers["Lambda-Runtime-Aws-Request-Id"], await response.read()

    async def post(
        self, path: str, body: bytes = b"{}", headers: dict[str, str] | None = None
    ) -> int:
        """Send something; return the status."""
        async with self._session.post(
            f"{self.prefix}{path}", data=io.BytesIO(body), headers=headers
        ) as response:
            return response.status

    async def until(self, condition: Callable[[], bool]) -> None:
        """Poll until a condition holds, for at most five seconds."""
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - processes and sockets have no event
                await asyncio.sleep(0.005)

    async def until_idle(self) -> "asyncio.Task[tuple[str, bytes]]":
        """Ask for work while there is none."""
        asking = asyncio.create_task(self.next())
        await self.until(lambda: self.environment.idle)
        return asking

    def invoke(self, event: bytes = b"{}", seconds: float = 5.0) -> "asyncio.Task[Outcome]":
        """Give the environment an event."""
        return asyncio.create_task(self.environment.invoke(event, ARN, seconds))

    @property
    def frozen(self) -> bool:
        """Tell whether the process is stopped."""
        return self.process.status() == psutil.STATUS_STOPPED

    async def close(self) -> None:
        """Hang up."""
        await self._session.close()


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail when anything is logged: a developer would find it in the cloud's log."""
    yield
    found = [record for record in caplog.get_records("call") if record.levelno >= logging.WARNING]
    assert found == []


def play(work: Callable[[Client], Awaitable[None]]) -> None:
    """Play the runtime client of one environment; the environment's end has to be clean."""
    process = subprocess.Popen(["sleep", "60"], process_group=0)

    async def playing() -> None:
        environment = Environment("cold", lambda _: None, lambda _: None)
        address = await environment.listen()
        environment.watch(process.pid, process.wait)
        client = Client(environment, psutil.Process(process.pid), address)
        try:
            await work(client)
        finally:
            environment.kill()
            process.kill()
            async with asyncio.timeout(5):
                await environment.over.wait()
            await client.close()
            await only_this_task_left()

    asyncio.run(playing())


async def only_this_task_left() -> None:
    """Wait until no handler of a connection is left, for at most five seconds."""
    async with asyncio.timeout(5):
        while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110 - the tasks are aiohttp's own
            await asyncio.sleep(0.005)


@pytest.mark.usefixtures("quiet")
def test_an_event_carries_what_a_runtime_needs_to_know() -> None:
    """Id, function and deadline come as headers, and the event as it was given."""

    async def work(client: Client) -> None:
        asking = await client.until_idle()
        client.invoke(b'{"a": 1}', seconds=7.0)
        request_id, event = await asking
        assert (request_id != "", event) == (True, b'{"a": 1}')
        assert client.headers["Lambda-Runtime-Invoked-Function-Arn"] == ARN
        left = int(client.headers["Lambda-Runtime-Deadline-Ms"]) / 1000 - time.time()
        assert 5 < left <= 7

    play(work)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("verb", "failure"), [("response", None), ("error", "handled")])
def test_an_invocation_is_complete_when_the_next_is_asked_for(
    verb: str, failure: Failure | None
) -> None:
    """The answer alone neither frees the caller nor freezes the process."""

    async def work(client: Client) -> None:
        asking = await client.until_idle()
        await client.until(lambda: client.frozen)
        invoked = client.invoke()
        request_id, _ = await asking
        await client.until(lambda: not client.frozen)
        assert await client.post(f"invocation/{request_id}/{verb}", b'"done"') == 202
        assert not invoked.done()
        assert not client.frozen
        asking = await client.until_idle()
        assert await invoked == Outcome(b'"done"', failure, request_id)
        await client.until(lambda: client.frozen)
        asking.cancel()

    play(work)


@pytest.mark.usefixtures("quiet")
def test_work_that_waited_is_delivered_without_a_freeze() -> None:
    """An event that came while the environment was starting is answered to its first request."""

    async def work(client: Client) -> None:
        client.invoke(b"early")
        await asyncio.sleep(0)
        assert (await client.next())[1] == b"early"
        assert not client.frozen

    play(work)


@pytest.mark.usefixtures("quiet")
def test_a_response_of_lambdas_size_is_taken_and_a_larger_one_refused() -> None:
    """413 for one byte more, on a connection that stays open, and the caller gets an error."""

    async def work(client: Client) -> None:
        asking = await client.until_idle()
        for size, status in ((MAX_PAYLOAD_BYTES, 202), (MAX_PAYLOAD_BYTES + 1, 413)):
            invoked = client.invoke(b"x" * MAX_PAYLOAD_BYTES)
            request_id, event = await asking
            assert len(event) == MAX_PAYLOAD_BYTES
            assert await client.post(f"invocation/{request_id}/response", b"x" * size) == status
            asking = await client.until_idle()
            outcome = await invoked
            if status == 202:
                assert len(outcome.payload) == size
            else:
                error = json.loads(outcome.payload)["errorType"]
                assert (outcome.failure, error) == ("handled", "Function.ResponseSizeTooLarge")
        asking.cancel()

    play(work)


@pytest.mark.usefixtures("quiet")
def test_a_header_of_one_mebibyte_is_taken() -> None:
    """The X-Ray cause of an error comes from awslambdaric in one, up to that size."""

    async def work(client: Client) -> None:
        asking = await client.until_idle()
        client.invoke()
        request_id, _ = await asking
        cause = {"Lambda-Runtime-Function-XRay-Error-Cause": "x" * 1_048_576}
        assert await client.post(f"invocation/{request_id}/error", headers=cause) == 202

    play(work)


@pytest.mark.usefixtures("quiet")
def test_what_is_not_part_of_the_api_is_refused() -> None:
    """An answer to another invocation is 400, an unknown path 404, and neither ends anything."""

    async def work(client: Client) -> None:
        assert await client.post("invocation/other/response") == 400
        for path in ("invocation/next", "invocation/x", "init/other", "nothing"):
            assert await client.post(path) == 404
        assert not client.environment.ended

    play(work)


@pytest.mark.usefixtures("quiet")
def test_requests_that_come_together_are_answered_one_after_the_other() -> None:
    """The second one waits while the first one waits for work."""

    async def work(client: Client) -> None:
        reader, writer = await asyncio.open_connection(*client.host.split(":"))
        asks = client.asks_next
        writer.write(asks + asks.replace(b"invocation/next", b"nothing"))
        await client.until(lambda: client.environment.idle)
        client.invoke(b'"event"')
        async with asyncio.timeout(5):
            assert (await reader.readuntil(b'"event"')).startswith(b"HTTP/1.1 200 ")
            assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 404 ")
        writer.close()

    play(work)


@pytest.mark.usefixtures("quiet")
def test_an_error_of_the_init_phase_is_what_the_invocation_comes_to() -> None:
    """The process reports it and exits; the caller gets the report."""

    async def work(client: Client) -> None:
        invoked = client.invoke()
        assert await client.post("init/error", b'{"errorType": "Broken"}') == 202
        client.process.kill()
        outcome = await invoked
        assert (outcome.failure, outcome.payload) == ("init", b'{"errorType": "Broken"}')

    play(work)


@pytest.mark.parametrize("lacks", ["path", "host", "origin", "site"])
def test_nobody_but_the_environment_takes_its_event_or_answers_it(lacks: str) -> None:
    """Another account of the machine does not know the path, and a page sends what tells on it."""

    async def work(client: Client) -> None:
        headers = {
            "host": {"Host": "evil.example"},
            "origin": {"Origin": "http://evil.example"},
            "site": {"Sec-Fetch-Site": "cross-site"},
        }.get(lacks, {})
        prefix = API_PREFIX if lacks == "path" else client.prefix
        asking = await client.until_idle()
        invoked = client.invoke(b'{"is": "secret"}')
        request_id, _ = await asking
        async with aiohttp.ClientSession(f"http://{client.host}", headers=headers) as stranger:
            async with stranger.get(f"{prefix}invocation/next") as response:
                assert (response.status, b"secret" in await response.read()) == (403, False)
            answer = f"{prefix}invocation/{request_id}/response"
            async with stranger.post(answer, data=b'"forged"') as response:
                assert response.status == 403
        assert await client.post(f"invocation/{request_id}/response", b'"mine"') == 202
        asking = asyncio.create_task(client.next())
        assert (await invoked).payload == b'"mine"'
        asking.cancel()

    play(work)


@pytest.mark.usefixtures("quiet")
def test_an_environment_that_is_killed_while_it_waits_ends_quietly() -> None:
    """Its request for work is gone: no task, no warning, no exception that nobody retrieved."""

    async def work(client: Client) -> None:
        asking = await client.until_idle()
        client.environment.kill()
        with pytest.raises(aiohttp.ClientError):
            await asking
        assert (await client.invoke()).failure == "exit"

    play(work)


@pytest.mark.usefixtures("quiet")
def test_an_environment_that_is_killed_while_it_answers_ends_quietly() -> None:
    """Half a body has come: the invocation fails, and nothing is logged."""

    async def work(client: Client) -> None:
        asking = await client.until_idle()
        invoked = client.invoke()
        request_id, _ = await asking
        _, writer = await asyncio.open_connection(*client.host.split(":"))
        path = f"{client.prefix}invocation/{request_id}/response"
        head = f"POST {path} HTTP/1.1\r\nHost: {client.host}\r\nContent-Length: 100\r\n\r\n"
        writer.write(head.encode() + b"half")
        await writer.drain()
        await asyncio.sleep(0.05)  # let it be read
        client.environment.kill()
        assert (await invoked).failure == "exit"
        writer.close()

    play(work)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_without_a_pidfd_the_lost_connection_is_the_end(
    monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    """On macOS nothing else tells; connections that never asked for work do not count."""
    monkeypatch.delattr(os, "pidfd_open", raising=False)

    async def work(client: Client) -> None:
        host, port = client.host.split(":")
        _, helper = await asyncio.open_connection(host, port)
        _, runtime = await asyncio.open_connection(host, port)
        runtime.write(client.asks_next)
        await client.until(lambda: client.environment.idle)
        invoked = client.invoke() if busy else None
        helper.close()
        await helper.wait_closed()
        await client.post("nothing")  # by then the cloud has noticed
        assert not client.environment.ended
        client.process.kill()
        runtime.close()
        await client.until(lambda: client.environment.ended)
        assert invoked is None or (await invoked).failure == "exit"

    play(work)
