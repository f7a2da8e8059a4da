"""The command line of the local cloud: `python -m lambda_pg_cdk.local …`."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local import state
from lambda_pg_cdk.local.cloud import (
    AlreadyRunningError,
    CloudError,
    DeploymentError,
    LocalCloud,
    NotRunningError,
    Options,
    UnhealthyError,
)
from lambda_pg_cdk.local.development.log_lines import show
from lambda_pg_cdk.local.development.logs import Logs
from lambda_pg_cdk.local.development.watch import Watch
from lambda_pg_cdk.local.narrator import Narrator

_INTERRUPTED = 130
_TEST_USER = uuid.UUID("11111111-1111-4111-8111-111111111111")
"""The user of a token for which no other is named: what one request writes, the next one finds."""
_SINCE = "10m"
_SAMPLE = "POST /users"
_DOCUMENTS = ("GET /openapi.json", "GET /swagger")
"""Routes for browsers and programs, not for curl."""
_SQL = "POST /sql"
_QUERY = """'{"query": "SELECT 1"}'"""
_RUNNING = "`make status` shows what runs, `make down` stops it."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    chosen = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = chosen.command
    try:
        return command(chosen)
    except (
        AlreadyRunningError,
        CloudError,
        DeploymentError,
        NotRunningError,
        PermissionError,
    ) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        still = state.is_locked(LocalCloud().folder)
        print("interrupted" + ("" if still else ": everything has been stopped"), file=sys.stderr)
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lambda_pg_cdk.local", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=(command.__doc__ or "").rstrip("."))
        added.set_defaults(command=command)
        return added

    starting = add("up", up)
    starting.add_argument("--no-deploy", action="store_true", help="start the servers only")
    starting.add_argument(
        "--cold",
        action="store_true",
        help="requests start new environments cold, not restored from a snapshot",
    )
    add("down", down)
    add("status", status).add_argument("--json", action="store_true", help="print one JSON object")
    add("credentials", credentials)
    add("psql", psql)
    deploying = add("redeploy", redeploy)
    deploying.add_argument(
        "--override", type=json.loads, help="settings, as JSON, on top of the stage's in cdk.json"
    )
    add("watch", watch)
    _add_logs_options(add("logs", logs))
    asking = add("token", token)
    asking.add_argument(
        "--sub",
        default=_TEST_USER,
        type=uuid.UUID,
        help="the user of the token (default: %(default)s)",
    )
    asking.add_argument(
        "--scope",
        help="scopes, separated by spaces; '' is none (default: all that the routes want)",
    )
    return parser


def _add_logs_options(reading: argparse.ArgumentParser) -> None:
    reading.add_argument("--follow", "-f", action="store_true", help="wait for new lines")
    reading.add_argument(
        "--since",
        type=_moment,
        default=_SINCE,
        metavar="TIME",
        help="90s, 10m, 2h, 1d, or a time like 2026-11-30T12:00 (default: %(default)s)",
    )
    reading.add_argument(
        "--request", default="", metavar="ID", help="only one request, by the beginning of its id"
    )


def _moment(text: str) -> datetime:
    """Read a time, or how long ago it was."""
    if found := re.fullmatch(r"(\d+)([smhd])", text):
        unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[found[2]]
        return datetime.now(UTC) - timedelta(**{unit: int(found[1])})
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time; write 90s, 10m, 2h, 1d, or a time like 2026-11-30T12:00"
        ) from None


def up(chosen: argparse.Namespace) -> int:
    """Start the local cloud, deploy the app, and leave it running."""
    options = Options(
        bound=False,
        deploy=not chosen.no_deploy,
        start="cold" if chosen.cold else "restored",
        wires=True,
        console=True,
    )
    cloud = LocalCloud(options=options, report=Narrator())
    print(f"starting a local cloud in {cloud.folder}", flush=True)
    cloud.start()
    if options.deploy:
        try:
            cloud.check_health()
        except UnhealthyError as error:
            print(error, file=sys.stderr)
            print(f"More logs are in {cloud.folder}. {_RUNNING}", file=sys.stderr)
            return 1
    print(_welcome(cloud))
    return 0


def _welcome(cloud: LocalCloud) -> str:
    found = cloud.status()
    first = found["apis"][0]["routes"] if found["apis"] else []
    lines = [
        f"The console is at {cloud.state.console_url}: watch, storm, break things.",
        f"The API is at {cloud.url}, the AWS APIs are at {cloud.state.aws_endpoint_url}.",
        f"Its routes: {', '.join(first)}" if first else "",
        *_more_addresses(found),
        f"{cloud.url}/swagger documents the API." if _DOCUMENTS[1] in first else "",
        f"Logs are in {cloud.folder}; `make logs` shows them. {_RUNNING}",
        "`make watch` deploys what you save.",
    ]
    said = "\n".join(filter(None, lines))
    return f"\n{said}\n\nTry it, as user {_TEST_USER}:\n\n" + "\n".join(_tries(cloud, first)) + "\n"


def _tries(cloud: LocalCloud, routes: Sequence[str]) -> list[str]:
    """Return commands that send requests to the first API."""
    bearer, header = cloud.token(str(_TEST_USER)), '-H "Authorization: Bearer $TOKEN"'
    body = """'{"name": "Ada"}'"""
    tries = [f"TOKEN={bearer}", f"curl -i {cloud.url}/health"]
    if _SAMPLE in routes:
        sent = f"-H 'Content-Type: application/json' -d {body}"
        tries.append(f"curl -i {header} {sent} {cloud.url}/users")
    if _SQL in routes:
        tries += [
            "make sql-key NAME=me ROLE=reader  # prints a DATABASE_URL for /sql",
            f'curl -i -H "Neon-Connection-String: $DATABASE_URL" -d {_QUERY} {cloud.url}/sql',
        ]
    asked = (each.partition(" ") for each in routes if each not in _DOCUMENTS)
    lists = [path for method, _, path in asked if method == "GET" and "{" not in path]
    return [*tries, *(f"curl -i {header} {cloud.url}{path}" for path in lists)]


def _more_addresses(found: dict[str, Any]) -> list[str]:
    """Say where further APIs and custom domain names are; `found` is the status."""
    apis = [
        f"Another API ({each['name']}) is at {each['url']}. Its routes: {', '.join(each['routes'])}"
        for each in found["apis"][1:]
    ]
    names = [
        f"https://{each['name']} is at 127.0.0.1:{each['port']}; trust {each['ca_file']}."
        for each in found["domains"]
    ]
    return [*apis, *names]


def down(_: argparse.Namespace) -> int:
    """Stop the local cloud and remove its data."""
    cloud = LocalCloud()
    was_running, was_there = state.is_locked(cloud.folder), cloud.folder.exists()
    cloud.stop()
    if was_running:
        print("stopped; its data is removed")
    else:
        print("nothing was running" + ("; what a cloud had left is removed" if was_there else ""))
    return 0


def status(chosen: argparse.Namespace) -> int:
    """Show what the local cloud runs."""
    found = LocalCloud().status()
    if chosen.json:
        print(json.dumps(found))
        return 0
    print(f"API      {found['api_url']}")
    for each in found["apis"][1:]:
        print(f"API      {each['url']} ({each['name']})")
    for each in found["domains"]:
        print(f"domain   https://{each['name']} at 127.0.0.1:{each['port']}, CA {each['ca_file']}")
    print(f"AWS      {found['aws_endpoint_url']}")
    if console := found.get("console_url"):
        print(f"console  {console}")
    if (database := found.get("postgres")) and "dsn" in database:
        print(f"database {database['dsn']}, max_connections {database['max_connections']}")
    if pooler := found.get("pooler"):
        limit = pooler["max_server_connections"]
        print(f"pooler   {pooler['host']}:{pooler['port']}, at most {limit} server connections")
        for task in pooler["tasks"]:
            print(f"task     {task['address']}: {task['state']}, {task['flows']} flows")
    for name, count in sorted(found.get("functions", {}).items()):
        print(f"function {name}: {count} environments")
    return 0


def token(chosen: argparse.Namespace) -> int:
    """Print a bearer token for curl, valid for an hour."""
    print(LocalCloud().token(str(chosen.sub), scope=chosen.scope))
    return 0


def credentials(_: argparse.Namespace) -> int:
    """Print the variables for the AWS command line, for `eval` in a shell."""
    found = LocalCloud().state
    variables = state.sdk_variables(found.aws_endpoint_url, found.region, found.key)
    for name, value in variables.items():
        print(f"export {name}={value}")
    return 0


def psql(_: argparse.Namespace) -> int:
    """Open a shell on the local database, as its owner."""
    database = LocalCloud().status()["postgres"]
    if "dsn" not in database:
        print("no database is deployed: `make redeploy` deploys the app", file=sys.stderr)
        return 1
    program = shutil.which("psql")
    if program is None:
        print("psql is missing: install `postgresql-client`", file=sys.stderr)
        return 1
    print(_who(database["dsn"]), flush=True)
    return subprocess.call([program, database["dsn"]])


def _who(dsn: str) -> str:
    """Say who is connected, and how to see the rows that row-level security hides."""
    address = urlsplit(dsn)
    claims = json.dumps({"sub": str(_TEST_USER)})
    return f"""\
You are {address.username}, the owner of the database {address.path[1:]}.
Row-level security hides rows from the owner too. Look as a user (here: the one of `token`):

BEGIN; GRANT lambda_pg_app TO CURRENT_USER; SET LOCAL ROLE lambda_pg_app; \
SELECT set_config('request.jwt.claims', '{claims}', true), \
set_config('request.jwt.transaction', CURRENT_TIMESTAMP::text, true);

Then select, and end with ROLLBACK. Functions log in as another user, through the pooler.
"""


def redeploy(chosen: argparse.Namespace) -> int:
    """Synthesise and deploy the app again to the running local cloud."""
    cloud, began = LocalCloud(report=Narrator()), time.monotonic()
    before = _updates(cloud)
    print("cdk synth, and cdk deploy --all …", flush=True)
    cloud.deploy(override=chosen.override)
    changed = sorted(name for name, update in _updates(cloud).items() if before.get(name) != update)
    what = f"changed: {', '.join(changed)}" if changed else "no stack has changed"
    print(f"deployed in {time.monotonic() - began:.1f} s; {what}")
    return 0


def _updates(cloud: LocalCloud) -> dict[str, str]:
    """Return when each stack was last changed."""
    pages = cloud.client("cloudformation").get_paginator("describe_stacks").paginate()
    stacks = [stack for page in pages for stack in page["Stacks"]]
    return {each["StackName"]: str(each.get("LastUpdatedTime", "")) for each in stacks}


def watch(_: argparse.Namespace) -> int:
    """Deploy what is saved: a function or the layer in seconds, all else by `cdk deploy`."""
    cloud = LocalCloud()
    cloud.status()  # raises NotRunningError

    def say(text: str) -> None:
        print(f"{datetime.now():%H:%M:%S} {text}", flush=True)

    try:
        Watch(cloud, PROJECT, say).run()
    except KeyboardInterrupt:
        print("\nno longer watching; the local cloud runs on")
    return 0


def logs(chosen: argparse.Namespace) -> int:
    """Print the logs of all functions and of the pooler, in the order of time."""
    cloud = LocalCloud()
    state.State.load(cloud.folder)  # raises NotRunningError
    stream = Logs(cloud.folder)
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    try:
        for found in stream.follow() if chosen.follow else stream.new_entries():
            if found.time >= chosen.since and found.concerns(chosen.request):
                print(show(found, width=stream.width, colour=colour), flush=chosen.follow)
    except KeyboardInterrupt:
        print()
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
