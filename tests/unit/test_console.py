"""The console's server: whom it refuses, what it sends, and one storm and one fault at a time."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web

from lambda_pg_cdk.console import actions, probe, steady
from lambda_pg_cdk.console.actions import Actions, BusyError
from lambda_pg_cdk.console.probe import Probe
from lambda_pg_cdk.console.server import FILES, HEADERS, Server
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.faults.catalogue import Fault
from tests.support.waiting import wait_until

Work = Callable[[aiohttp.ClientSession, str], Awaitable[Any]]


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[str]:
    """Serve a console on a free port."""
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    watching = asyncio.create_task(server.watch.run())
    yield f"http://127.0.0.1:{runner.addresses[0][1]}{server.path}"
    watching.cancel()
    await runner.cleanup()


def with_console(folder: Path, work: Work) -> Any:
    """Do some work with a console of a folder in which no cloud runs."""

    async def run() -> Any:
        async with serving(Server(LocalCloud(folder))) as url, aiohttp.ClientSession() as session:
            return await work(session, url)

    return asyncio.run(run())


def answer(folder: Path, method: str, path: str, own_origin: bool = True, **request: Any) -> Any:
    """Send one request; return its status, headers and text."""

    async def work(session: aiohttp.ClientSession, url: str) -> Any:
        origin = url.rpartition("/")[0]
        port = origin.rpartition(":")[2]
        headers = {
            **({"Origin": origin} if own_origin and method == "POST" else {}),
            **{name: value.format(port=port) for name, value in request.pop("headers", {}).items()},
        }
        sent = session.request(method, f"{url}{path}", headers=headers, **request)
        async with sent as response:
            return response.status, response.headers, await response.text()

    return with_console(folder, work)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1:1", "[::1]"])
def test_another_host_is_refused(tmp_path: Path, host: str) -> None:
    """A name that leads here is not ours (DNS rebinding)."""
    assert answer(tmp_path, "GET", "/", headers={"Host": host})[0] == 403


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}"])
def test_its_own_names_are_served(tmp_path: Path, host: str) -> None:
    """Both names of loopback."""
    status, _, text = answer(tmp_path, "GET", "/", headers={"Host": host})
    assert (status, "lambda-pg" in text) == (200, True)


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1:1", "null"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_origin_is_refused(tmp_path: Path, origin: str, method: str) -> None:
    """Whatever it asks for."""
    headers = {"Origin": origin}
    status = answer(tmp_path, method, "/load", json={"on": False}, headers=headers)[0]
    assert status == 403


def test_an_order_without_an_origin_is_refused(tmp_path: Path) -> None:
    """A browser always sends one with a POST."""
    assert answer(tmp_path, "POST", "/load", own_origin=False, json={"on": False})[0] == 403
    assert answer(tmp_path, "POST", "/load", json={"on": False})[0] == 202


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_request_from_another_site_is_refused(tmp_path: Path, site: str) -> None:
    """A browser says so even where it sends no origin: of an image, or a link."""
    assert answer(tmp_path, "GET", "/", headers={"Sec-Fetch-Site": site})[0] == 403
    assert answer(tmp_path, "GET", "/", headers={"Sec-Fetch-Site": "same-origin"})[0] == 200


@pytest.mark.parametrize("path", ["", "/", "/stream", "/load", f"/{'0' * 32}/"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_who_does_not_know_the_path_is_refused(tmp_path: Path, method: str, path: str) -> None:
    """Another account of the machine reaches the port, and nothing behind it."""

    async def work(session: aiohttp.ClientSession, url: str) -> int:
        origin = url.rpartition("/")[0]
        order: dict[str, Any] = {"headers": {"Origin": origin}, "json": {"on": True}}
        sent = order if method == "POST" else {}
        async with session.request(method, f"{origin}{path}", **sent) as response:
            return response.status

    assert with_console(tmp_path, work) == 403


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
def test_an_order_that_is_not_json_is_refused(tmp_path: Path, kind: str) -> None:
    """What a form of another page could send."""
    headers = {"Content-Type": kind}
    assert answer(tmp_path, "POST", "/load", data=b'{"on": false}', headers=headers)[0] == 415


@pytest.mark.parametrize(
    ("path", "order"),
    [
        ("/storms", {"target": "nothing", "requests": 50}),
        ("/storms", {"target": "lambda-pg", "requests": 50_000}),
        ("/storms", {}),
        ("/storms", []),
        ("/faults", {"name": "nothing"}),
        ("/load", {}),
    ],
)
def test_an_order_that_makes_no_sense_is_a_bad_request(
    tmp_path: Path, path: str, order: object
) -> None:
    """With a sentence, never a trace."""
    status, _, text = answer(tmp_path, "POST", path, json=order)
    assert (status, "bad request" in json.loads(text)["error"]) == (400, True)


def test_an_order_without_a_cloud_is_unavailable(tmp_path: Path) -> None:
    """And the sentence says where no cloud runs."""
    status, _, text = answer(tmp_path, "POST", "/load", json={"on": True})
    assert (status, f"no local cloud is running in {tmp_path}" in text) == (503, True)


@pytest.mark.parametrize("path", [*FILES, "/nothing", "/stream"])
def test_every_answer_is_protected(tmp_path: Path, path: str) -> None:
    """No script or style but the console's own, no outside request, no frame."""

    async def work(session: aiohttp.ClientSession, url: str) -> Any:
        async with session.get(f"{url}{path}") as response:
            return response.headers

    headers = with_console(tmp_path, work)
    assert {name: headers.get(name) for name in HEADERS} == HEADERS
    assert "unsafe" not in headers["Content-Security-Policy"]


def test_nothing_but_the_page_is_served(tmp_path: Path) -> None:
    """No file of the folder and none of the project."""
    for path in ("/server.py", "/../server.py", "/%2e%2e/server.py", "/state.json"):
        assert answer(tmp_path, "GET", path)[0] in {403, 404}


def test_without_a_cloud_the_stream_says_so(tmp_path: Path) -> None:
    """It goes on, for the cloud may come."""

    async def work(session: aiohttp.ClientSession, url: str) -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = []
        async with session.get(f"{url}/stream") as response:
            while len(found) < 2:
                event = (await response.content.readline()).decode().strip()
                data = (await response.content.readline()).decode().removeprefix("data: ")
                await response.content.readline()
                found.append((event, json.loads(data)))
        return found

    (first, history), (second, sample) = with_console(tmp_path, work)
    assert (first, second) == ("event: history", "event: sample")
    assert history["targets"].keys() == {"lambda-pg", "baseline"}
    assert sample["running"] is False
    assert sample["database"] is None


# What it does


@contextmanager
def held(entered: threading.Event, left: threading.Event) -> Iterator[None]:
    """Stay inside until the test says so."""
    entered.set()
    left.wait(10)
    yield


def test_a_second_fault_is_refused_while_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And allowed when it has ended; its time is known."""
    entered, left = threading.Event(), threading.Event()
    slow = Fault("slow", "something slow", 0, lambda _: held(entered, left))
    monkeypatch.setattr(actions, "FAULTS", (slow,))

    async def work() -> list[dict[str, Any]]:
        done = Actions(LocalCloud(tmp_path), lambda: None)
        done.fault("slow")
        await asyncio.to_thread(entered.wait, 10)
        with pytest.raises(BusyError, match="A fault is running"):
            done.fault("slow")
        left.set()
        await done.close()
        done.fault("slow")
        await done.close()
        found: list[dict[str, Any]] = done.summary()["activities"]
        return found

    found = asyncio.run(work())
    assert [(each["kind"], each["name"], each["state"]) for each in found] == [
        ("fault", "slow", "ended"),
        ("fault", "slow", "ended"),
    ]
    assert all(each["ended"] >= each["began"] for each in found)


def test_a_failure_is_shown_and_the_next_one_can_begin(tmp_path: Path) -> None:
    """Without a cloud a storm fails, with its reason."""

    async def work() -> list[dict[str, Any]]:
        done = Actions(LocalCloud(tmp_path), lambda: None)
        for _ in range(2):
            done.storm("lambda-pg", 50)
            await done.close()
        found: list[dict[str, Any]] = done.summary()["activities"]
        return found

    found = asyncio.run(work())
    assert [each["state"] for each in found] == ["failed", "failed"]
    assert found[0]["detail"].startswith("NotRunningError: no local cloud is running")


# What it reads


class Hangs:
    """A reader whose second reading does not come back for a while."""

    def __init__(self) -> None:
        self.back = threading.Event()
        self.readings = 0
        self.closed = threading.Event()

    def read(self) -> int:
        self.readings += 1
        if self.readings == 2:
            self.back.wait(10)
        return self.readings

    def close(self) -> None:
        self.closed.set()


def test_a_reading_that_does_not_come_is_away_not_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped server shows as away, and is read again when it answers."""
    monkeypatch.setattr(probe, "INTERVAL", 0.01)
    monkeypatch.setattr(probe, "AWAY_SECONDS", 0.3)
    reader, watched = Hangs(), threading.Event()
    read = Probe("hangs", reader, watched)
    wait_until(reader.closed.is_set)
    assert reader.readings == 0, "nobody watches"
    watched.set()
    wait_until(lambda: reader.readings == 2)
    assert read.latest() == 1
    wait_until(lambda: read.latest() is None)
    reader.back.set()
    wait_until(lambda: (read.latest() or 0) > 2)
    read.end()


class Fails:
    """A reader that never answers well."""

    def __init__(self) -> None:
        self.readings = 0

    def read(self) -> int:
        self.readings += 1
        raise ConnectionError("refused")

    def close(self) -> None:
        """Hold nothing."""


def test_an_error_is_written_once_and_read_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An outage of minutes does not fill the log."""
    monkeypatch.setattr(probe, "INTERVAL", 0.001)
    reader, watched = Fails(), threading.Event()
    watched.set()
    read = Probe("fails", reader, watched)
    wait_until(lambda: reader.readings > 20)
    read.end()
    assert read.latest() is None
    assert capsys.readouterr().err == "fails: ConnectionError: refused\n"


class Newcomer:
    """A cloud whose environments take a while to open."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self.opening = threading.Event()
        self.opened = threading.Event()
        self.url = "http://127.0.0.1:1"

    def environments(self, *_: Any) -> None:
        """Take as long as the test wants."""
        self.opening.set()
        assert self.opened.wait(10)


@pytest.mark.parametrize("stopped", [True, False])
def test_a_load_that_is_switched_off_while_it_starts_stays_off(
    monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    """The last word counts."""
    monkeypatch.setattr(steady.Visitor, "arrive", lambda _: steady.Visitor("token", "user"))
    cloud = Newcomer()

    async def play() -> bool:
        load = steady.SteadyLoad(cast("LocalCloud", cloud))
        starting = asyncio.create_task(load.start())
        await asyncio.to_thread(cloud.opening.wait, 10)
        if stopped:
            await load.stop()
        cloud.opened.set()
        await starting
        on = load.on
        await load.stop()
        return on

    assert asyncio.run(play()) is not stopped
