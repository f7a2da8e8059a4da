"""Only its owner can use a running cloud: no web page, and no other account of the machine.

The listeners are those that the kernel says the cloud's processes have. One that speaks neither
HTTP nor PostgreSQL's protocol fails the test: an attack on it has to be written first.
"""

import base64
import io
import ipaddress
import json
import os
import stat
import subprocess
import sys
import threading
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from playwright.sync_api import sync_playwright

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.http.caller import call
from tests.support.chromium import FLAGS, find_chromium
from tests.support.place import Place

STRANGER = 54321  # an account without a name, a group or a file
PUBLIC = {"health: 200", "discovery: 200", "keys: 200"}
"""What the API and the issuer answer anybody, on AWS too: up or not, and public keys."""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")


@pytest.fixture(scope="module")
def cloud(whole: Place) -> LocalCloud:
    """The cloud with every part that there is, an environment too."""
    call(whole.cloud.url, "GET", "/users", whole.cloud.token(str(uuid.uuid4())))
    return whole.cloud


def processes(cloud: LocalCloud) -> list[psutil.Process]:
    """Return every process of the cloud."""
    guardian = psutil.Process(cloud.state.guardian)
    return [guardian, *guardian.children(recursive=True)]


def listeners(cloud: LocalCloud) -> set[tuple[str, int] | str]:
    """Return where the cloud's processes listen: addresses, and paths of sockets."""
    found: set[tuple[str, int] | str] = set()
    for process in processes(cloud):
        with suppress(psutil.NoSuchProcess):
            for each in process.net_connections("all"):
                if isinstance(each.laddr, str):
                    if each.laddr.startswith("/") and not each.raddr:
                        found.add(each.laddr)
                elif each.status == psutil.CONN_LISTEN:
                    found.add((each.laddr.ip, each.laddr.port))
    return found


def secret_of(cloud: LocalCloud) -> str:
    """Return the ARN of a secret of the deployed app."""
    return str(cloud.client("secretsmanager").list_secrets()["SecretList"][0]["ARN"])


def function_of(cloud: LocalCloud) -> str:
    """Return the name of a deployed function."""
    return str(cloud.client("lambda").list_functions()["Functions"][0]["FunctionName"])


def attack(cloud: LocalCloud, where: list[Any], files: list[str]) -> dict[str, Any]:
    """Have another account attack listeners and read files."""
    order = {
        "uid": STRANGER,
        "listeners": where,
        "files": files,
        "secret": secret_of(cloud),
        "function": function_of(cloud),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.stranger"],
        cwd=PROJECT,
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_no_port_can_be_reached_from_another_machine(cloud: LocalCloud) -> None:
    """Everything listens on the address of loopback."""
    ports = [where for where in listeners(cloud) if isinstance(where, tuple)]
    assert len(ports) > 10
    assert all(ipaddress.ip_address(ip).is_loopback for ip, _ in ports), ports


@as_root
def test_another_account_gets_nothing_from_any_listener(cloud: LocalCloud) -> None:
    """Neither with the requests of the owner, nor by another name, nor as a page would ask."""
    where = sorted(listeners(cloud), key=str)
    found = attack(cloud, where, [])["listeners"]
    seen = dict(zip(where, found, strict=True))
    kinds = {kind: [w for w, each in seen.items() if each["kind"] == kind] for kind in KINDS}
    assert {each["kind"] for each in found} <= KINDS, f"write an attack first: {seen}"
    # API, issuer, control endpoint, two of the control plane, its front, console, environments.
    assert len(kinds["http"]) >= 8, seen
    # PostgreSQL, balancer, two tasks, two wires.
    assert len(kinds["postgres"]) >= 6, seen
    assert len(kinds["unix"]) >= 2, seen
    apis = [each["url"] for each in cloud.status()["apis"]]
    public = {urlsplit(url).port for url in (*apis, cloud.state.issuer_url)}
    for listener, each in seen.items():
        allowed = PUBLIC if listener[1] in public else set()
        assert set(each["let_in"]) <= allowed, (listener, each)
        assert not each.get("open_to_pages"), (listener, each)
        assert not each.get("foreign"), (listener, each)


KINDS = {"http", "postgres", "unix", "gone"}


@as_root
def test_another_account_reads_no_file_of_the_cloud(cloud: LocalCloud) -> None:
    """State, keys, logs and code: only the certificate that clients check is readable by all."""
    paths = [cloud.folder, *cloud.folder.rglob("*")]
    inside = [path for path in paths if not path.is_symlink() and path.exists()]
    assert len(inside) > 50
    readable = attack(cloud, [], [str(path) for path in inside])["files"]
    assert readable == [str(cloud.folder / "postgres" / "ca.pem")]


def test_the_owner_alone_reads_state_keys_and_logs(cloud: LocalCloud) -> None:
    """0600, whatever the umask was; folders are closed, or can only be gone through."""
    kept = [*cloud.folder.glob("*.json"), *cloud.folder.glob("*.pem"), *cloud.folder.rglob("*.log")]
    assert {"state.json", "issuer.pem", "cloud.log", "postgres.log", "pgbouncer.log"} <= {
        path.name for path in kept
    }
    open_files = [p for p in kept if p.name != "ca.pem" and stat.S_IMODE(p.stat().st_mode) & 0o077]
    assert open_files == []
    assert stat.S_IMODE(cloud.folder.stat().st_mode) & 0o066 == 0


def test_no_command_line_has_a_key(cloud: LocalCloud) -> None:
    """Every account of the machine can read what a process was started with."""
    console = urlsplit(str(cloud.state.console_url)).path.strip("/")
    assert len(console) >= 32
    assert len(cloud.state.key) >= 32
    for process in processes(cloud):
        with suppress(psutil.NoSuchProcess):
            line = " ".join(process.cmdline())
            assert cloud.state.key not in line
            assert console not in line


# A page

PAGE = """<!doctype html><title>page</title>"""
ATTACK = """async ([ports, secret, code]) => {
  const read = [];
  const blind = { mode: "no-cors", method: "POST", headers: { "Content-Type": "text/plain" } };
  const target = { "X-Amz-Target": "secretsmanager.GetSecretValue" };
  const body = JSON.stringify({ SecretId: secret });
  const slow = new Set();
  const ask = async (url, how) => {
    const port = new URL(url).port;
    if (slow.has(port)) return;
    try {
      const answer = await fetch(url, { ...how, signal: AbortSignal.timeout(3000) });
      const text = await answer.text();
      if (text) read.push(`${url}: ${text}`);
    } catch (error) {
      if (error.name === "TimeoutError") slow.add(port);  // it waits for another protocol
    }
  };
  const functions = "/2015-03-31/functions";
  for (const port of ports) {
    const url = `http://127.0.0.1:${port}`;
    await ask(`${url}/`, { method: "POST", headers: target, body });
    await ask(`${url}${functions}`, { ...blind, body: code });
    await ask(`${url}${functions}/by-a-page/invocations`, { ...blind, body: "{}" });
    await ask(`${url}/deploy`, { ...blind, body: JSON.stringify({ app: "/tmp/by-a-page" }) });
    await ask(`${url}/load`, { ...blind, body: JSON.stringify({ on: true }) });
    for (const path of ["/", "/status", "/health", "/.well-known/jwks.json"])
      await ask(`${url}${path}`, {});
    await ask(`${url}/health`, { mode: "no-cors" });  // as an image's address
    await ask(`${url}/2018-06-01/runtime/invocation/next`, { mode: "no-cors" });
  }
  return read;
}"""


class Server(BaseHTTPRequestHandler):
    """Serve the page."""

    def do_GET(self) -> None:
        """Answer with it."""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(PAGE.encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name
        """Say nothing."""


@contextmanager
def page_server() -> Iterator[int]:
    """Serve the page on a port of loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def code_that_leaves(mark: Path) -> str:
    """Return an order for a function whose code writes a file."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("index.py", f"open({str(mark)!r}, 'w').close()\ndef handler(*_): pass\n")
    order = {
        "FunctionName": "by-a-page",
        "Runtime": f"python3.{sys.version_info.minor}",
        "Handler": "index.handler",
        "Role": "arn:aws:iam::000000000000:role/any",
        "Code": {"ZipFile": base64.b64encode(archive.getvalue()).decode()},
    }
    return json.dumps(order)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_web_page_gets_nothing_from_any_listener(
    cloud: LocalCloud, tmp_path: Path, name: str
) -> None:
    """A real browser, from another port of this machine: it reads nothing and changes nothing."""
    ports = sorted({each[1] for each in listeners(cloud) if not isinstance(each, str)})
    answered: list[str] = []
    mark, browser = tmp_path / "mark", find_chromium()
    with page_server() as port, sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=browser.program, args=list(FLAGS), env=browser.environment
        )
        page = started.new_page()
        page.goto(f"http://{name}:{port}/")
        page.on(
            "response",
            lambda each: answered.append(f"{each.request.method} {each.url}: {each.status}"),
        )
        read = page.evaluate(ATTACK, [ports, secret_of(cloud), code_that_leaves(mark)])
        started.close()
    names = [each["FunctionName"] for each in cloud.client("lambda").list_functions()["Functions"]]
    assert (mark.exists(), "by-a-page" in names) == (False, False)
    assert read == []
    assert len(answered) > len(ports), "the page has reached nothing, which proves nothing"
    assert [each for each in answered if not each.endswith(": 403")] == []
