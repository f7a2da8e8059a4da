"""The command line of the local cloud, without a cloud."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jwt
import pytest

from lambda_pg_cdk.local import cli, state
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.http_api.issuer import Issuer
from lambda_pg_cdk.local.options import Options


class Started(Exception):  # noqa: N818 - it ends a command that would wait
    """Carries the options."""


@pytest.mark.parametrize(("given", "start"), [([], "restored"), (["--cold"], "cold")])
def test_cold_starts_are_asked_for_by_name(
    monkeypatch: pytest.MonkeyPatch, given: list[str], start: str
) -> None:
    """Without it, requests start restored environments; the daemon gets the choice."""

    class Cloud:
        folder = Path("nowhere")

        def __init__(self, options: Options, **_: Any) -> None:
            self._options = options

        def start(self) -> None:
            raise Started(Options.parse(self._options.dump()))

    monkeypatch.setattr(cli, "LocalCloud", Cloud)
    with pytest.raises(Started) as found:
        cli.main(["up", *given])
    assert found.value.args[0].start == start


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where no cloud is."""
    folder = tmp_path / "state"
    monkeypatch.setenv("LAMBDA_PG_STATE_DIR", str(folder))
    return folder


@pytest.mark.parametrize("verb", ["redeploy", "watch", "logs", "token", "psql", "status"])
def test_a_verb_without_a_cloud_says_how_to_start_one(
    folder: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, no traceback."""
    assert cli.main([verb]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"no local cloud is running in {folder}: `make up` starts one"


def test_down_says_what_it_did(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There was a cloud, what one had left, or nothing."""
    monkeypatch.setattr(LocalCloud, "stop", lambda _: None)
    said = []
    held: list[int] = []
    changes: list[Callable[[], object]] = [
        lambda: None,
        folder.mkdir,
        lambda: held.append(state.lock(folder)),
    ]
    for change in changes:
        change()
        assert cli.main(["down"]) == 0
        said.append(capsys.readouterr().out.strip())
    assert said == [
        "nothing was running",
        "nothing was running; what a cloud had left is removed",
        "stopped; its data is removed",
    ]
    os.close(held[0])


API = {"name": "app", "url": "http://127.0.0.1:1", "routes": ["GET /orders", "GET /orders/{id}"]}
SQL = {"name": "app: /sql", "url": "http://127.0.0.1:2", "routes": ["OPTIONS /sql", "POST /sql"]}
DOMAIN = {"name": "api.example.test", "port": 3, "ca_file": "/ca.pem"}


class Welcoming:
    """A cloud that has started, with the APIs and the names of a test."""

    url, folder = "http://127.0.0.1:1", "/folder"
    state = SimpleNamespace(console_url="http://console", aws_endpoint_url="http://aws")

    def __init__(self, *apis: dict[str, Any], domains: tuple[dict[str, Any], ...] = ()) -> None:
        self._status = {"apis": apis, "domains": domains}

    def status(self) -> dict[str, Any]:
        """Return what is deployed."""
        return self._status

    def token(self, _subject: str) -> str:
        """Return a token."""
        return "the token"


def welcome(cloud: Welcoming) -> list[str]:
    """Return what `up` says at its end."""
    return cli._welcome(cast(LocalCloud, cloud)).splitlines()


def test_up_says_where_every_api_and_every_name_is() -> None:
    """Each with its routes; a name with its port and its CA. Only the first API is tried."""
    said = welcome(Welcoming(API, SQL, domains=(DOMAIN,)))
    assert "Its routes: GET /orders, GET /orders/{id}" in said
    other = "Another API (app: /sql) is at http://127.0.0.1:2. Its routes: OPTIONS /sql, POST /sql"
    assert other in said
    assert "https://api.example.test is at 127.0.0.1:3; trust /ca.pem." in said
    tries = [line for line in said if line.startswith(("curl", "make"))]
    assert [line.rpartition("http://127.0.0.1:1")[2] for line in tries] == ["/health", "/orders"]


def test_up_says_how_to_try_sql_where_the_first_api_has_it() -> None:
    """A key first, then a statement."""
    key, tried = welcome(Welcoming(SQL))[-2:]
    assert key.startswith("make sql-key NAME=me ROLE=reader")
    assert tried.endswith("""-d '{"query": "SELECT 1"}' http://127.0.0.1:1/sql""")


def test_up_says_how_to_try_the_sample() -> None:
    """One request that makes a user, one that lists users; the document is for a browser."""
    routes = ["ANY /users", "GET /openapi.json", "GET /swagger", "GET /users", "POST /users"]
    said = welcome(Welcoming({**API, "routes": routes}))
    assert "http://127.0.0.1:1/swagger documents the API." in said
    tried = [line.split() for line in said if line.startswith("curl")]
    assert [each[-1].rpartition(":1")[2] for each in tried] == ["/health", "/users", "/users"]
    assert ["-d" in each for each in tried] == [False, True, False]


def test_up_without_an_app_names_no_route() -> None:
    """Nothing is deployed yet."""
    assert not any("routes" in line for line in welcome(Welcoming()))


@pytest.mark.parametrize("given", ["yesterday", "10", "10w", "2026-13-01"])
def test_a_time_that_cannot_be_read_is_refused_with_examples(
    folder: Path, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The value, and how to write one."""
    with pytest.raises(SystemExit):
        cli.main(["logs", "--since", given])
    said = capsys.readouterr().err
    assert f"{given!r} is not a time; write 90s, 10m, 2h, 1d" in said


@pytest.fixture
def running(folder: Path) -> Iterator[Path]:
    """The folder of a cloud with one log, as far as its files tell."""
    held = state.lock(folder)
    url = "http://127.0.0.1:1"
    state.State("mark", 1, 2, "key", url, url, url, url, "eu-central-1", ready=True).save(folder)
    Issuer.create(url).save(folder / "issuer.pem")
    (folder / "logs").mkdir()
    lines = [
        {"timestamp": f"{datetime.now(UTC):%FT%TZ}", "message": f"of {name}", "requestId": name}
        for name in ("aaaa1111", "bbbb2222")
    ]
    old = {"timestamp": "2020-01-01T00:00:00Z", "message": "old"}
    text = "".join(f"{json.dumps(line)}\n" for line in (old, *lines))
    (folder / "logs" / "orders.log").write_text(text)
    yield folder
    os.close(held)


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        ([], ["of aaaa1111", "of bbbb2222"]),
        (["--since", "2019-01-01"], ["old", "of aaaa1111", "of bbbb2222"]),
        (["--request", "aaaa"], ["of aaaa1111"]),
        (["--request", "cccc"], []),
    ],
)
def test_logs_shows_what_was_asked_for(
    running: Path, given: list[str], messages: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The last ten minutes, another time, or one request; without colour in a pipe."""
    assert cli.main(["logs", *given]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["old" if "old" in line else line[-11:] for line in lines] == messages
    assert not any("\x1b" in line for line in lines)


def test_following_prints_new_lines_until_the_cloud_ends(
    running: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also while nothing is written."""
    log = running / "logs" / "orders.log"

    def write() -> None:
        with log.open("a") as file:
            file.write("printed\n")

    made: list[Callable[[], object]] = [write, lambda: None, lambda: shutil.rmtree(running)]
    steps = iter(made)
    monkeypatch.setattr("lambda_pg_cdk.local.development.logs.time.sleep", lambda _: next(steps)())
    assert cli.main(["logs", "--follow"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("printed")


@pytest.fixture
def scoped(running: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cloud whose routes want scopes."""
    apis = [{"scopes": ["users:write", "users:read"]}, {"scopes": []}, {"scopes": ["users:read"]}]
    monkeypatch.setattr(LocalCloud, "status", lambda _: {"apis": apis})
    return running


def printed_claims(capsys: pytest.CaptureFixture[str], *given: str) -> dict[str, Any]:
    """Return the claims of the token that the command prints."""
    assert cli.main(["token", *given]) == 0
    token = capsys.readouterr().out.strip()
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def test_a_token_without_a_user_is_of_the_test_user(
    scoped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Always the same one: what one request writes, the next one finds."""
    assert len({printed_claims(capsys)["sub"] for _ in range(2)}) == 1


@pytest.mark.parametrize(
    ("given", "scope"),
    [
        ([], "users:read users:write"),
        (["--scope", "users:read"], "users:read"),
        (["--scope", ""], None),
    ],
    ids=["all", "one", "none"],
)
def test_a_token_has_the_scopes_of_all_routes_or_those_that_are_named(
    scoped: Path, given: list[str], scope: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default it is good for every route."""
    assert printed_claims(capsys, *given).get("scope") == scope


def test_psql_says_who_it_is_and_how_to_look_as_somebody(
    running: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the prompt, since an empty table would be taken for a fault."""
    dsn = "postgresql://owner:secret@127.0.0.1:5/app?sslmode=verify-full"
    monkeypatch.setattr(LocalCloud, "status", lambda _: {"postgres": {"dsn": dsn}})
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    called: list[list[str]] = []

    def call(command: list[str]) -> int:
        called.append(command)
        return 0

    monkeypatch.setattr("lambda_pg_cdk.local.cli.subprocess.call", call)
    assert cli.main(["psql"]) == 0
    said = capsys.readouterr().out
    assert "You are owner, the owner of the database app" in said
    assert "SET LOCAL ROLE lambda_pg_app" in said
    assert "secret" not in said
    assert called == [["/bin/psql", dsn]]
