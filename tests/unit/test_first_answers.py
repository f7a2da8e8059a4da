"""What `make up` and `make demo` look at before they welcome anybody."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks import demo
from lambda_pg_cdk.local import cli
from lambda_pg_cdk.local import cloud as local_cloud
from lambda_pg_cdk.local.cloud import LocalCloud, UnhealthyError
from lambda_pg_cdk.local.state import State, lock
from tests.support.issuer import issuer_at

REASON = "connection failed: server closed the connection unexpectedly"


class Api:
    """A deployed API: answers by method and path; of several the last one is repeated."""

    def __init__(self) -> None:
        """Be healthy."""
        self.answers: dict[str, list[int]] = {"GET /health": [200]}
        self.asked: list[str] = []

    def answer(self, asked: str) -> int:
        """Return the next status for a request; 503 for what nobody has said anything about."""
        self.asked.append(asked)
        statuses = self.answers.get(asked, [503])
        return statuses.pop(0) if len(statuses) > 1 else statuses[0]


@pytest.fixture
def api() -> Api:
    """What the cloud's API answers."""
    return Api()


@pytest.fixture
def cloud(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[LocalCloud, list[Any]]]:
    """A cloud that has started, as far as its folder and its API tell, and what it reports."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status = api.answer(f"{self.command} {self.path}")
            body = json.dumps({"status": status, "id": "7"}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PATCH = do_GET  # noqa: N815 - the library's names

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    folder = tmp_path / "state"
    held = lock(folder)
    State("mark", 1, 2, "key", url, url, url, url, "eu-central-1", ready=True).save(folder)
    issuer_at(url).save(folder / "issuer.pem")
    (folder / "logs").mkdir()
    (folder / "logs" / "health.log").write_text(f"{REASON}\n")
    monkeypatch.setenv("LAMBDA_PG_STATE_DIR", str(folder))
    monkeypatch.setattr(LocalCloud, "start", lambda _: None)
    monkeypatch.setattr(LocalCloud, "stop", lambda _: shutil.rmtree(folder))
    monkeypatch.setattr(LocalCloud, "status", lambda _: {"apis": [], "domains": []})
    monkeypatch.setattr(local_cloud, "_HEALTH_SECONDS", 0.0)
    reports: list[Any] = []
    yield LocalCloud(report=reports.append), reports
    os.close(held)
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_api_that_is_not_healthy_is_told_with_reason_and_log(
    cloud: tuple[LocalCloud, list[Any]], api: Api
) -> None:
    """What was asked, what was answered, why, and where more is."""
    api.answers["GET /health"] = [503]
    with pytest.raises(UnhealthyError) as raised:
        cloud[0].check_health()
    told = str(raised.value)
    assert f"GET {cloud[0].url}/health answered 503" in told
    assert REASON in told
    assert str(cloud[0].folder / "logs" / "health.log") in told


def test_an_api_that_nobody_serves_is_told_as_well(
    cloud: tuple[LocalCloud, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused connection is an error with a message, without a traceback."""
    monkeypatch.setattr(LocalCloud, "url", "http://127.0.0.1:1")
    with pytest.raises(UnhealthyError, match=r"health got no answer \(.*refused"):
        cloud[0].check_health()


def test_an_api_that_needs_a_moment_is_asked_again(
    cloud: tuple[LocalCloud, list[Any]], api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cold start on a busy machine is not a fault, and the wait is reported once."""
    monkeypatch.setattr(local_cloud, "_HEALTH_SECONDS", 60.0)
    monkeypatch.setattr(local_cloud, "_LOOK_SECONDS", 0.0)
    api.answers["GET /health"] = [503, 503, 200]
    cloud[0].check_health()
    assert len(api.asked) == 3
    (note,) = cloud[1]
    assert "answered 503" in note["note"]


def test_up_does_not_welcome_to_an_api_that_fails(
    cloud: tuple[LocalCloud, list[Any]], api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cloud goes on running, as its logs are wanted now; the exit code says that it failed."""
    api.answers["GET /health"] = [503]
    assert cli.main(["up"]) == 1
    said = capsys.readouterr()
    assert "curl" not in said.out
    assert REASON in said.err
    assert f"More logs are in {cloud[0].folder}" in said.err
    assert "`make down` stops it" in said.err
    assert cloud[0].folder.exists()


def test_up_welcomes_to_an_api_that_is_healthy(
    cloud: tuple[LocalCloud, list[Any]], api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has been looked at."""
    assert cli.main(["up"]) == 0
    assert api.asked == ["GET /health"]
    assert "curl" in capsys.readouterr().out


def test_up_without_a_deployment_has_no_api_to_look_at(
    cloud: tuple[LocalCloud, list[Any]], api: Api
) -> None:
    """There is only the servers."""
    assert cli.main(["up", "--no-deploy"]) == 0
    assert api.asked == []


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"GET /health": [503]}, r"health answered 503"),
        ({"POST /users": [503]}, r"POST /users answered 503 instead of 201: .*503"),
        ({"POST /users": [201], "GET /users/7": [500]}, "GET /users/7 answered 500 instead of 200"),
    ],
)
def test_the_demo_stops_at_the_first_wrong_answer_and_keeps_its_logs(
    cloud: tuple[LocalCloud, list[Any]],
    api: Api,
    answers: dict[str, list[int]],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No storm, no KeyError; the cloud is stopped, and what it has logged is still there."""
    api.answers.update(answers)
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "old.log").touch()
    monkeypatch.setattr(demo, "KEPT_LOGS", kept)
    monkeypatch.setattr(demo, "run", lambda *_, **__: pytest.fail("it went on to the storm"))
    with pytest.raises(local_cloud.CloudError, match=said):
        demo.main()
    assert api.asked[-1] == list(answers)[-1]
    assert not cloud[0].folder.exists()
    assert [path.name for path in kept.rglob("*.log")] == ["health.log"]
    assert (kept / "logs" / "health.log").read_text() == f"{REASON}\n"
