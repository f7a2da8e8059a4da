"""Synthesise every stage, and every combination of database and pooler.

One process does it all, since most of the time of a single `cdk synth` is its start. What only
needs the list of combinations imports this module without that start.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.stage.loading import CDK_JSON, read_context
from lambda_pg_cdk.tools.context import context_of

if TYPE_CHECKING:
    from lambda_pg_cdk import Stage

OUTPUT = PROJECT / "build" / "cdk.out"
LINT_RULES = Path(__file__).with_name("cfnlint.yaml")
BASE = "dev"
"""The stage whose settings the combinations change."""

_ACCOUNT = "arn:aws:secretsmanager:eu-west-1:111122223333:secret"
_NETWORK = {
    "vpc_id": "vpc-0a1b2c3d4e5f60718",
    "subnet_ids": ["subnet-0a1b2c3d4e5f60718", "subnet-0a1b2c3d4e5f60719"],
    "subnet_cidrs": ["10.0.16.0/20", "10.0.32.0/20"],
}
_EXISTING = {
    "host": "database.example.com",
    "secret_arn": f"{_ACCOUNT}:owner-AbCdEf",
    "security_group_id": "sg-0a1b2c3d4e5f60718",
    "identifier": "database",
    "resource_id": "db-ABCDEFGHIJKLMNOPQRSTUVWXY",
}
_DATABASES: dict[str, dict[str, Any]] = {
    "instance": {},
    "aurora": {"database": {"kind": "aurora", "max_connections": None}},
    "existing": {
        "network": _NETWORK,
        "database": {"kind": "existing", "max_connections": 200, "existing": _EXISTING},
    },
}
_POOLERS: dict[str, dict[str, Any]] = {
    "pgbouncer": {"pooler": "pgbouncer"},
    "rds-proxy": {"pooler": "rds-proxy"},
    "rds-proxy-with-secret": {
        "pooler": "rds-proxy",
        "rds_proxy": {"auth": "secret"},
        "database": {"rotation": "single"},
    },
}
_KEY = "arn:aws:kms:eu-west-1:111122223333:key/01234567-89ab-cdef-0123-456789abcdef"
_EXTERNAL: dict[str, Any] = {
    "pooler": "external",
    "database": {"kind": "none"},
    "external": {"secret_arn": f"{_ACCOUNT}:supabase-AbCdEf", "profile": "supabase", "port": 6543},
}

_SQL = {
    "enabled": True,
    "roles": ["reader", "writer", "caller"],
    "jwt": True,
    "statements": "sql/statements.json",
}

_PAGES = ["https://www.example.com"]

COMBINATIONS: Mapping[str, Mapping[str, Any]] = {
    **{
        f"{database}-{pooler}": {
            **of_database,
            **of_pooler,
            "database": {**of_database.get("database", {}), **of_pooler.get("database", {})},
        }
        for database, of_database in _DATABASES.items()
        for pooler, of_pooler in _POOLERS.items()
    },
    **{
        f"{database}-{pooler}-with-sql": {
            **_DATABASES[database],
            **_POOLERS[pooler],
            "database": {
                **_DATABASES[database].get("database", {}),
                **_POOLERS[pooler].get("database", {}),
                "max_connections": 200,
            },
            "sql": of_sql,
        }
        for database, pooler, of_sql in (
            ("aurora", "rds-proxy", _SQL),
            ("existing", "rds-proxy-with-secret", {**_SQL, "gzip": False}),
        )
    },
    "external": _EXTERNAL,
    "external-with-sql": {
        **_EXTERNAL,
        "sql": {
            **_SQL,
            **{
                f"{role}_secret_arn": f"{_ACCOUNT}:{role}-AbCdEf"
                for role in ("reader", "writer", "caller")
            },
        },
    },
    "external-in-network": {
        **_EXTERNAL,
        "network": _NETWORK,
        "identity": {"scopes": False},
        "external": {**_EXTERNAL["external"], "kms_key_arn": _KEY},
    },
    "instance-pgbouncer-without-nat": {
        "network": {"egress": "endpoints"},
        "api": {
            "origins": _PAGES,
            "openapi": True,
            "require_idempotency_key": True,
            "require_if_match": True,
        },
    },
    "instance-pgbouncer-bastion-with-sql": {
        "network": {"bastion": True},
        "database": {"max_connections": 200},
        "api": {"origins": _PAGES},
        "sql": {**_SQL, "origins": _PAGES},
    },
    "instance-pgbouncer-bastion-endpoints-email-with-sql": {
        "network": {"egress": "endpoints", "bastion": True},
        "observability": {"email": "on-call@example.com"},
        "database": {"max_connections": 200},
        "sql": {"enabled": True},
    },
}
"""Combinations of database and pooler, as overrides of the stage `dev`.

Each synthesis takes seconds, so `sql` is on once or twice with each database and with each pooler,
and the settings of `api` and `identity.scopes` differ in a few.
"""


def stages() -> tuple[str, ...]:
    """Name the stages of cdk.json."""
    return tuple(read_context(CDK_JSON)["stages"])


def new_stage(stage: str, folder: Path, override: Mapping[str, Any] | None = None) -> Stage:
    """Make a stage of this project as app.py does, for templates in a folder."""
    from aws_cdk import App  # noqa: PLC0415 - the CDK starts in seconds

    from lambda_pg_cdk import Stage  # noqa: PLC0415 - the CDK starts in seconds

    return Stage(App(outdir=str(folder), context=context_of(stage, override)))


def everything() -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield each app to synthesise: its name, the stage and the override."""
    for stage in stages():
        yield stage, stage, {}
    for name, override in COMBINATIONS.items():
        yield name, BASE, override


def lint(folders: Iterable[Path]) -> int:
    """Run cfn-lint on all different templates; return its exit code."""
    unique = {
        hashlib.sha256(template.read_bytes()).digest(): template
        for folder in folders
        for template in folder.glob("*.template.json")
    }
    linter = Path(sys.executable).with_name("cfn-lint")
    command = [str(linter), "--config-file", str(LINT_RULES), "--", *map(str, unique.values())]
    return subprocess.run(command, cwd=PROJECT, check=False).returncode


def main() -> int:
    """Synthesise all, then lint; return the exit code."""
    folders = []
    for name, stage, override in everything():
        began = time.perf_counter()
        folder = OUTPUT / name
        new_stage(stage, folder, override).synth()
        folders.append(folder)
        print(f"synthesised {name:32} {time.perf_counter() - began:4.1f} s", flush=True)
    print("linting", flush=True)
    return lint(folders)


if __name__ == "__main__":
    sys.exit(main())
