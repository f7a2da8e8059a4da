"""The command line of the local cloud: `python -m lambda_pg_cdk.local …`."""

import argparse
import json
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence

from lambda_pg_cdk.local.cloud import (
    AlreadyRunningError,
    CloudError,
    DeploymentError,
    LocalCloud,
    NotRunningError,
    Options,
    UnhealthyError,
)
from lambda_pg_cdk.local.narrator import Narrator
from lambda_pg_cdk.local.state import sdk_variables

_INTERRUPTED = 130
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
        print("interrupted: everything has been stopped", file=sys.stderr)
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
    deploying = add("deploy", deploy)
    deploying.add_argument(
        "--override", type=json.loads, help="settings, as JSON, on top of the stage's in cdk.json"
    )
    asking = add("token", token)
    asking.add_argument(
        "--sub", required=True, type=uuid.UUID, help="the subject, the user of the token"
    )
    asking.add_argument("--scope", default="", help="scopes, separated by spaces")
    return parser


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
    subject = str(uuid.uuid4())
    bearer = cloud.token(subject)
    body = """'{"name": "Ada"}'"""
    header = '-H "Authorization: Bearer $TOKEN"'
    return f"""
The console is at {cloud.state.console_url}: watch, storm, break things.
The API is at {cloud.url}, the AWS APIs are at {cloud.state.aws_endpoint_url}.
Logs are in {cloud.folder}. {_RUNNING}

Try it, as user {subject}:

TOKEN={bearer}
curl -i {cloud.url}/health
curl -i {header} -H 'Content-Type: application/json' -d {body} {cloud.url}/users
curl -i {header} {cloud.url}/users
"""


def down(_: argparse.Namespace) -> int:
    """Stop the local cloud and remove its data."""
    LocalCloud().stop()
    return 0


def status(chosen: argparse.Namespace) -> int:
    """Show what the local cloud runs."""
    found = LocalCloud().status()
    if chosen.json:
        print(json.dumps(found))
        return 0
    print(f"API      {found['api_url']}")
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
    """Print a bearer token of the local issuer."""
    print(LocalCloud().token(str(chosen.sub), scope=chosen.scope))
    return 0


def credentials(_: argparse.Namespace) -> int:
    """Print the variables for the AWS command line, for `eval` in a shell."""
    state = LocalCloud().state
    for name, value in sdk_variables(state.aws_endpoint_url, state.region, state.key).items():
        print(f"export {name}={value}")
    return 0


def psql(_: argparse.Namespace) -> int:
    """Open a shell on the local database."""
    program = shutil.which("psql")
    if program is None:
        print("psql is missing: install `postgresql-client`", file=sys.stderr)
        return 1
    database = LocalCloud().status()["postgres"]
    return subprocess.call([program, database["dsn"]])


def deploy(chosen: argparse.Namespace) -> int:
    """Deploy the app again to the running local cloud."""
    began = time.monotonic()
    print("cdk deploy --all …", flush=True)
    LocalCloud(report=Narrator()).deploy(override=chosen.override)
    print(f"deployed in {time.monotonic() - began:.1f} s")
    return 0
