"""Create, list and revoke keys of `/sql`: `make sql-key NAME=web ROLE=reader`.

    python -m lambda_pg_cdk.tools.sql_key --stage dev create web --role reader

A key's secret is shown once; the table has its SHA-256. docs/decisions/0050
"""

import argparse
import hashlib
import json
import re
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.functions.sql.sql_http.callers import KeyLimits, StageRules
from lambda_pg_cdk.functions.sql.sql_http.key_table import is_key_id, read_table
from lambda_pg_cdk.functions.sql.sql_http.statements import NONE, StatementsError, load_statements
from lambda_pg_cdk.local.cloud import LocalCloud, NotRunningError
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.loading import NoProjectError, load_stage
from lambda_pg_cdk.stage.schema import ConfigurationError
from lambda_pg_cdk.tools.keys_secret import Keys, KeysSecret, KeysSecretError, Version

LOCAL = "local"
SECRET_BYTES = 32


class SqlKeyError(ValueError):
    """The command cannot run; the message says why and what to do."""


class Deployed(NamedTuple):
    """What a deployed stage has."""

    secret: KeysSecret
    url: str
    """URL of /sql."""


Clients = Callable[[str], Any]


def find(config: Config, clients: Clients) -> Deployed:
    """Look a stage up by the outputs of its stack. Raises SqlKeyError."""
    stack = f"{config.stack_prefix}-Api"
    try:
        (found,) = clients("cloudformation").describe_stacks(StackName=stack)["Stacks"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "ValidationError":  # it does not exist
            raise
        found = {}
    outputs = {each["OutputKey"]: each["OutputValue"] for each in found.get("Outputs", ())}
    if "SqlKeysArn" not in outputs:
        raise SqlKeyError(
            f"the stack {stack} has no table of keys: set sql.enabled of stage {config.stage!r} in"
            f" cdk.json to true, and deploy it"
        )
    secret = KeysSecret(clients("secretsmanager"), outputs["SqlKeysArn"])
    return Deployed(secret, outputs["SqlUrl"])


def rules_of(config: Config) -> StageRules:
    """Return what the function checks keys by. Raises StatementsError, and OSError."""
    sql = config.sql
    limits = KeyLimits(sql.max_rows, sql.max_bytes, sql.max_statements, sql.max_request_bytes)
    statements = load_statements(PROJECT / sql.statements) if sql.statements else NONE
    return StageRules(frozenset(sql.roles), config.database.name, limits, statements)


def create(deployed: Deployed, config: Config, key_id: str, fields: Mapping[str, Any]) -> str:
    """Add a key; return what to show, with its secret. Raises SqlKeyError, KeysSecretError."""
    secret, rules = secrets.token_urlsafe(SECRET_BYTES), rules_of(config)
    entry = {"hash": hashlib.sha256(secret.encode()).hexdigest(), **fields}
    if problems := read_table(_table(key_id, entry), rules).problems:
        raise SqlKeyError("; ".join(problems))

    def add(keys: Keys) -> None:
        if key_id in keys:
            raise SqlKeyError(
                f"there is a key {key_id} already: revoke it first, or choose another name"
            )
        keys[key_id] = entry

    deployed.secret.change(add)
    return _created(deployed, config, key_id, secret)


def _table(key_id: str, entry: Mapping[str, Any]) -> str:
    return json.dumps({"keys": {key_id: entry}})


def _created(deployed: Deployed, config: Config, key_id: str, secret: str) -> str:
    api = urlsplit(deployed.url).hostname
    host = config.sql.hosts[0] if config.sql.hosts else api
    lines = [
        f"Created key {key_id} of stage {config.stage}. Its secret is shown only now:",
        "",
        f"DATABASE_URL=postgresql://{key_id}:{secret}@{host}/{config.database.name}",
        "",
    ]
    if not config.sql.hosts:
        lines += [
            "The stage has no custom domain name (sql.hosts), so clients need this line too:",
            "",
            f"neonConfig.fetchEndpoint = '{deployed.url}'",
            "",
        ]
    return "\n".join(lines)


def revoke(deployed: Deployed, config: Config, key_id: str) -> str:
    """Remove a key; return what to show. Raises SqlKeyError, KeysSecretError."""

    def remove(keys: Keys) -> None:
        if keys.pop(key_id, None) is None:
            raise SqlKeyError(f"there is no key {key_id!r}: `make sql-key` lists the keys")

    deployed.secret.change(remove)
    return (
        f"Revoked key {key_id}. It is accepted for at most {config.sql.key_lifetime} s more"
        " (sql.key_lifetime), or longer while Secrets Manager fails (docs/operations.md)"
    )


def listed(version: Version, rules: StageRules, now: datetime) -> str:
    """Show the keys, without their hashes, and what is wrong with them."""
    rows = [("KEY", "ROLE", "CREATED", "EXPIRES", "STATEMENTS", "NOTE")]
    rows += [_row(key_id, fields, now) for key_id, fields in sorted(version.keys.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, *read_table(version.text, rules).problems])


def _row(key_id: str, fields: object, now: datetime) -> tuple[str, str, str, str, str, str]:
    known = fields if isinstance(fields, dict) else {}
    created, expires = str(known.get("created", ""))[:10], known.get("expires")
    statements = known.get("statements")
    return (
        key_id if is_key_id(key_id) else "(not an id)",
        str(known.get("role", "")),
        created,
        "never" if expires is None else _expiry(str(expires), now),
        str(len(statements)) if isinstance(statements, list) else "all" if statements else "free",
        str(known.get("note", "")),
    )


def _expiry(text: str, now: datetime) -> str:
    try:
        return f"{text[:10]} (expired)" if datetime.fromisoformat(text) <= now else text[:10]
    except (ValueError, TypeError):
        return "?"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lambda_pg_cdk.tools.sql_key", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--stage", default=LOCAL, help="a stage of cdk.json (default: local)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="show the keys, without secrets and hashes")
    commands.add_parser("revoke", help="remove a key").add_argument("name")
    creating = commands.add_parser("create", help="create a key, and show its secret once")
    creating.add_argument("name", help="the id of the key, as in web")
    creating.add_argument(
        "--role", required=True, help="the trust level: one of the stage's sql.roles"
    )
    creating.add_argument(
        "--expires",
        type=_moment,
        metavar="TIME",
        help="when the key expires, as in 90d or 2027-01-31 (default: never)",
    )
    creating.add_argument("--note", help="a note for people, such as the owner")
    creating.add_argument(
        "--statements", metavar="NAMES", help="send these registered statements only: a,b or all"
    )
    creating.add_argument(
        "--retries",
        action="store_true",
        help="retry writes after a lost connection too: one may run twice",
    )
    for name in KeyLimits._fields:
        option = f"--max-{name.replace('_', '-')}"
        creating.add_argument(option, type=int, metavar="N", help=f"a limit below sql.max_{name}")
    return parser


def _moment(text: str) -> datetime:
    """Read a date, or a number of days from now."""
    if found := re.fullmatch(r"(\d{1,5})d", text):
        return datetime.now(UTC).replace(microsecond=0) + timedelta(days=int(found[1]))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"the time is {text!r}; must be as in 90d or 2027-01-31"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def fields_of(chosen: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of the new key, without its hash."""
    names = chosen.statements
    named = {name: getattr(chosen, f"max_{name}") for name in KeyLimits._fields}
    limits = {name: value for name, value in named.items() if value is not None}
    fields = {
        "role": chosen.role,
        "limits": limits or None,
        "statements": names and (True if names == "all" else names.split(",")),
        "retries": chosen.retries or None,
        "expires": chosen.expires and chosen.expires.isoformat(),
        "note": chosen.note,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return {name: value for name, value in fields.items() if value is not None}


def run(chosen: argparse.Namespace, config: Config, deployed: Deployed) -> str:
    """Run one command; return what to show."""
    if chosen.command == "create":
        return create(deployed, config, chosen.name, fields_of(chosen))
    if chosen.command == "revoke":
        return revoke(deployed, config, chosen.name)
    return listed(deployed.secret.read(), rules_of(config), datetime.now(UTC))


def _deployed(config: Config) -> Deployed:
    """Find the stage in the local cloud or on AWS."""
    if config.stage != LOCAL:
        return find(config, boto3.Session(region_name=config.region).client)
    cloud = LocalCloud()
    return find(config, cloud.client)._replace(url=f"{cloud.url}/sql")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    chosen = _parser().parse_args(arguments)
    try:
        config = load_stage(chosen.stage)
        print(run(chosen, config, _deployed(config)))
    except (
        *(ConfigurationError, NoProjectError, NotRunningError, SqlKeyError, KeysSecretError),
        *(StatementsError, OSError, BotoCoreError, ClientError),
    ) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
