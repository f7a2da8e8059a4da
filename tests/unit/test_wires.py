"""The faults that a local cloud can be told to have, at its wires and before Secrets Manager."""

import asyncio
import io
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import psutil
import pytest
from aiohttp import web
from yarl import URL

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.faults.proxy import can_blackhole
from lambda_pg_cdk.local.faults.secrets_front import SecretsFront
from lambda_pg_cdk.local.faults.wires import Wires

PATIENCE = 0.3
"""Seconds after which something that has not come is held back."""


@pytest.fixture
def server() -> Iterator[int]:
    """A server that sends back what it receives; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_echo, args=(listener,), daemon=True)
        thread.start()
        yield listener.getsockname()[1]


def _echo(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    with connection, suppress(ConnectionResetError):
        while data := connection.recv(100):
            connection.sendall(data)


def with_wire(tmp_path: Path, server: int, story: Callable[[Wires, int], Awaitable[None]]) -> None:
    """Run a story with a wire called `hop` to the server, and its port."""

    async def run() -> None:
        port = processes.free_port()
        wires = Wires(tmp_path / "log", {"hop": (port, server)})
        await wires.start()
        try:
            await story(wires, port)
        finally:
            await wires.close()

    asyncio.run(run())


def connect(port: int) -> socket.socket:
    """Connect, for a patient while."""
    return socket.create_connection(("127.0.0.1", port), PATIENCE)


def answers(connection: socket.socket) -> bool:
    """Tell whether an answer comes soon."""
    try:
        connection.sendall(b"a word")
        return connection.recv(100) == b"a word"
    except TimeoutError:
        return False


@pytest.mark.parametrize(
    "kind",
    [
        "stall",
        pytest.param(
            "blackhole",
            marks=pytest.mark.skipif(
                not can_blackhole(), reason="this kernel lets only root do it"
            ),
        ),
    ],
)
def test_a_silence_lasts_until_it_is_ended(tmp_path: Path, server: int, kind: str) -> None:
    """Nothing comes through while it is there; beginning or ending it twice changes nothing."""

    async def story(wires: Wires, port: int) -> None:
        with connect(port) as connection:
            assert answers(connection)
            await wires.begin("hop", kind)
            await wires.begin("hop", kind)
            assert not answers(connection)
            await wires.end("hop", kind)
            await wires.end("hop", kind)
            connection.settimeout(5)
            assert connection.recv(100) == b"a word"

    with_wire(tmp_path, server, story)


def test_a_reset_is_over_at_once(tmp_path: Path, server: int) -> None:
    """What was open is reset, what comes next is served."""

    async def story(wires: Wires, port: int) -> None:
        with connect(port) as before:
            assert answers(before)
            await wires.begin("hop", "reset")
            with pytest.raises(ConnectionResetError):
                before.recv(100)
        with connect(port) as after:
            assert answers(after)
        assert await wires.accepted() == {"hop": 2}

    with_wire(tmp_path, server, story)


def test_a_refusal_ends_on_the_same_port(tmp_path: Path, server: int) -> None:
    """Nobody gets in while it is there."""

    async def story(wires: Wires, port: int) -> None:
        await wires.begin("hop", "refuse")
        with pytest.raises(ConnectionRefusedError):
            connect(port)
        await wires.end("hop", "refuse")
        with connect(port) as connection:
            assert answers(connection)

    with_wire(tmp_path, server, story)


def test_wires_that_ended_in_a_fault_say_so_and_open_again(tmp_path: Path, server: int) -> None:
    """Without an error nobody would know that the fault has ended before its time."""

    async def story(wires: Wires, port: int) -> None:
        await wires.begin("hop", "stall")
        (process,) = [
            child
            for child in psutil.Process().children()
            if "lambda_pg_cdk.local.faults.wires.process" in child.cmdline()
        ]
        process.kill()
        while process.is_running():  # noqa: ASYNC110 - another process has no event
            await asyncio.sleep(PATIENCE)
        with pytest.raises(RuntimeError, match="ended"):
            await wires.end("hop", "stall")
        with suppress(RuntimeError):  # the order before has maybe met it in its end
            await wires.accepted()
        with connect(port) as connection:
            assert answers(connection)
        assert await wires.accepted() == {"hop": 1}

    with_wire(tmp_path, server, story)


@pytest.mark.parametrize(("wire", "kind"), [("hop", "earthquake"), ("nowhere", "stall")])
def test_what_is_not_there_is_refused_by_name(
    tmp_path: Path, server: int, wire: str, kind: str
) -> None:
    """An unknown wire or fault is an error, and the process goes on."""

    async def story(wires: Wires, _port: int) -> None:
        with pytest.raises(ValueError, match=r"earthquake|nowhere"):
            await wires.begin(wire, kind)
        assert await wires.accepted() == {"hop": 0}

    with_wire(tmp_path, server, story)


# Secrets Manager


def with_secrets(story: Callable[[SecretsFront, Callable[..., Awaitable[int]]], object]) -> None:
    """Run a story with a front before a control plane, and what asks for a status there."""

    async def control_plane(request: web.BaseRequest) -> web.Response:
        return web.Response(text=f"{request.raw_path} {(await request.read()).decode()}")

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            plane, address = await _serve(control_plane)
            front = SecretsFront(address, session)
            runner, url = await _serve(front.handle)

            async def ask(target: str = "secretsmanager.GetSecretValue") -> int:
                headers = {"X-Amz-Target": target}
                async with session.post(f"{url}/?a=b", data=b"order", headers=headers) as answer:
                    if answer.status == 200:
                        assert await answer.text() == "/?a=b order"
                    return answer.status

            try:
                await story(front, ask)  # type: ignore[misc]  # a coroutine
            finally:
                await runner.cleanup()
                await plane.cleanup()

    asyncio.run(run())


async def _serve(
    handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
) -> tuple[web.ServerRunner, str]:
    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


@pytest.mark.parametrize(("kind", "status"), [("failing", 500), ("throttling", 400)])
def test_secrets_manager_fails_while_it_is_told_to(kind: str, status: int) -> None:
    """Other services are served, and it is too when the fault has ended; each strike counts."""

    async def story(front: SecretsFront, ask: Callable[..., Awaitable[int]]) -> None:
        assert await ask() == 200
        front.begin(kind)
        assert await ask() == status
        assert await ask("AmazonSSM.GetParameter") == 200
        front.end(kind)
        assert await ask() == 200
        assert front.faulted_calls == 1

    with_secrets(story)


def test_a_slow_secrets_manager_answers_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """By as much as it says, and well."""
    monkeypatch.setattr("lambda_pg_cdk.local.faults.secrets_front.SLOW_SECONDS", PATIENCE)

    async def story(front: SecretsFront, ask: Callable[..., Awaitable[int]]) -> None:
        front.begin("slow")
        began = time.monotonic()
        assert await ask() == 200
        assert time.monotonic() - began >= PATIENCE

    with_secrets(story)


def test_an_unknown_fault_of_secrets_manager_is_refused() -> None:
    """By its name."""

    async def story(front: SecretsFront, _ask: Callable[..., Awaitable[int]]) -> None:
        with pytest.raises(ValueError, match="earthquake"):
            front.begin("earthquake")

    with_secrets(story)


def test_a_large_request_passes_whole() -> None:
    """A function's log or code may have megabytes."""

    async def control_plane(request: web.BaseRequest) -> web.Response:
        size = sum([len(chunk) async for chunk in request.content.iter_any()])
        return web.Response(text=f"{request.raw_path} {size}")

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            plane, address = await _serve(control_plane)
            front, url = await _serve(SecretsFront(address, session).handle)
            target = URL(f"{url}/a%2Fb?c=%3A", encoded=True)
            async with session.post(target, data=io.BytesIO(bytes(2 * 1024 * 1024))) as answer:
                assert await answer.text() == "/a%2Fb?c=%3A 2097152"
            await front.cleanup()
            await plane.cleanup()

    asyncio.run(run())
