"""What can be set for a stage: the block of that name in cdk.json, typed and checked.

Seconds everywhere, unless a name says otherwise. A wrong value is refused with its dotted name,
the value and what is allowed; all problems are listed at once.
"""

# ruff: noqa: RUF009 - `section` makes a field with a default_factory, as dataclasses.field does

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from stacks.settings import REQUIRED, ConfigurationError, read, section, setting

API_TIMEOUT = 29
"""Seconds after which the API gives up on a function; an HTTP API's own limit is 30."""

RETENTION = (1, 3, 5, 7, 14, 30, 60, 90, 180, 365, 731, 1827, 3653)
"""Days that CloudWatch Logs can keep events, up to ten years."""

HOST = r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?"
PATH = r"/[^\0]*"
ISSUER = r"cognito|https://[^\s?#]+|http://(127\.0\.0\.1|localhost)(:\d+)?(/[^\s?#]*)?"


@dataclass(frozen=True, kw_only=True)
class Network:
    """The VPC and how its private subnets reach AWS."""

    cidr: str = setting(
        "10.0.0.0/16",
        "addresses of the VPC",
        pattern=r"\d{1,3}(\.\d{1,3}){3}/(1[6-9]|2[0-4])",
        shape="IPv4 with a prefix of 16 to 24, as in 10.0.0.0/16",
    )
    egress: str = setting(
        "nat",
        "how private subnets reach AWS: one NAT gateway a zone, or interface endpoints only",
        choices=("nat", "endpoints"),
    )
    nat_gateways: int = setting(
        1, "NAT gateways where egress is nat; 2 survive the loss of a zone", minimum=1, maximum=3
    )
    flow_logs: bool = setting(True, "whether rejected and accepted flows are logged")
    zone: str = setting(
        "lambda-pg.internal", "name of the private DNS zone", pattern=HOST, shape="a DNS name"
    )


@dataclass(frozen=True, kw_only=True)
class Database:
    """RDS for PostgreSQL."""

    major_version: int = setting(17, "PostgreSQL's major version", choices=(17,))
    minor_version: int = setting(7, "PostgreSQL's minor version", minimum=1, maximum=99)
    instance_class: str = setting(
        "t4g.medium",
        "size of the instance, without 'db.'",
        pattern=r"[a-z][a-z0-9]*\.[a-z0-9]+",
        shape="an RDS class, as in t4g.medium",
    )
    name: str = setting(
        "app", "name of the database", pattern=r"[a-z][a-z0-9_]{0,62}", shape="a lower-case name"
    )
    max_connections: int = setting(
        200, "server connections that PostgreSQL accepts", minimum=20, maximum=5000
    )
    multi_az: bool = setting(True, "whether a standby in the other zone takes over")
    storage_gib: int = setting(20, "storage at first", unit="GiB", minimum=20, maximum=65536)
    max_storage_gib: int = setting(
        100, "storage up to which RDS grows by itself", unit="GiB", minimum=22, maximum=65536
    )
    backup_days: int = setting(7, "days of backups kept", unit="days", minimum=0, maximum=35)
    deletion_protection: bool = setting(True, "whether RDS refuses to delete the instance")
    statement_timeout: int = setting(
        10, "longest statement, set on the database", unit="seconds", minimum=1, maximum=900
    )
    lock_timeout: int = setting(
        3, "longest wait for a lock, set on the database", unit="seconds", minimum=1, maximum=900
    )
    idle_in_transaction_timeout: int = setting(
        30, "longest pause in a transaction, set on the database", unit="seconds", minimum=1,
        maximum=900,
    )  # fmt: skip
    other_connections: int = setting(
        5, "server connections kept free for administrators and a rotation", minimum=2, maximum=100
    )
    ca_file: str | None = setting(
        None,
        "file with the CA that signs the database's certificate; null: the RDS roots",
        pattern=PATH,
        shape="an absolute path",
    )


@dataclass(frozen=True, kw_only=True)
class Pooler:
    """PgBouncer on ECS Fargate, behind an internal load balancer."""

    tasks: int = setting(2, "poolers that run; one process uses one core", minimum=1, maximum=16)
    cpu: int = setting(
        1024, "CPU of a task, 1024 is one core", unit="units", choices=(256, 512, 1024)
    )
    memory: int = setting(2048, "memory of a task", unit="MiB", choices=(512, 1024, 2048, 4096))
    port: int = setting(6432, "port that functions connect to", minimum=1024, maximum=65535)
    endpoint_host: str | None = setting(
        None,
        "name or address of the pooler; null: 'pooler' in the private zone",
        pattern=HOST,
        shape="a DNS name or an IPv4 address",
    )
    pool_mode: str = setting(
        "transaction", "when a server connection is given back", choices=("transaction", "session")
    )
    max_client_conn: int = setting(
        2000, "client connections for each task", minimum=10, maximum=60000
    )
    max_db_connections: int = setting(
        20, "server connections for each task, over all users", minimum=1, maximum=4000
    )
    default_pool_size: int = setting(
        20, "server connections for each user in a task", minimum=1, maximum=4000
    )
    query_wait_timeout: int = setting(
        1, "longest wait in the pooler's queue", unit="seconds", minimum=1, maximum=20
    )
    maximum_percent: int = setting(
        200, "tasks that may run during a rolling deployment", unit="percent", choices=(150, 200)
    )
    refresh_interval: int = setting(
        15, "time between two looks at the secrets", unit="seconds", minimum=1, maximum=3600
    )
    drain_timeout: int = setting(
        30, "time a stopping task gives to open transactions", unit="seconds", minimum=1,
        maximum=110,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Functions:
    """What all functions of this app share."""

    memory: int = setting(512, "memory of a function", unit="MiB", minimum=128, maximum=10240)
    timeout: int = setting(
        20, "longest invocation behind the API", unit="seconds", minimum=2, maximum=25
    )
    migration_timeout: int = setting(
        300, "longest migration", unit="seconds", minimum=30, maximum=900
    )
    checkout_timeout: int = setting(
        3, "longest wait for a usable connection", unit="seconds", minimum=1, maximum=20
    )
    reserved_concurrency: int | None = setting(
        None, "environments that 'users' may have; null: the account's limit", minimum=1,
        maximum=10000,
    )  # fmt: skip
    log_level: str = setting(
        "INFO", "least severe event logged", choices=("DEBUG", "INFO", "WARNING", "ERROR")
    )


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Whose tokens the API accepts."""

    issuer: str = setting(
        "cognito",
        "OpenID Connect issuer; 'cognito' creates a user pool and a client",
        pattern=ISSUER,
        shape="'cognito' or an https:// URL",
    )
    audience: tuple[str, ...] = setting(
        (), "audiences or client ids accepted, where the issuer is not 'cognito'"
    )


@dataclass(frozen=True, kw_only=True)
class Api:
    """Limits of the HTTP API."""

    rate_limit: int = setting(
        1000, "requests let through", unit="a second", minimum=1, maximum=100000
    )
    burst_limit: int = setting(2000, "requests let through at once", minimum=1, maximum=100000)


@dataclass(frozen=True, kw_only=True)
class Observability:
    """Who hears about alarms."""

    email: str | None = setting(
        None, "address that alarms are sent to", pattern=r"[^@\s]+@[^@\s]+", shape="an address"
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that can be set for one stage."""

    stage: str
    account: str | None = setting(
        None, "AWS account; null: that of the credentials", pattern=r"\d{12}", shape="12 digits"
    )
    region: str = setting(
        REQUIRED, "AWS region", pattern=r"[a-z]{2}(-[a-z]+)+-\d", shape="a region, as in eu-west-1"
    )
    availability_zones: tuple[str, ...] = setting(
        REQUIRED,
        "two or three zones of the region; given here so that synth looks nothing up",
        pattern=r"[a-z]{2}(-[a-z]+)+-\d[a-z]",
        shape="zones of the region, as in eu-west-1a",
    )
    python: str = setting(
        "3.13",
        "Lambda runtime; 'interpreter' is the one that runs synth",
        choices=("3.13", "3.14", "interpreter"),
    )
    architecture: str = setting(
        "arm64",
        "of functions and pooler; 'interpreter' is this machine's",
        choices=("arm64", "x86_64", "interpreter"),
    )
    termination_protection: bool = setting(
        True, "whether the stacks that hold data refuse to be deleted"
    )
    log_retention_days: int = setting(30, "days logs are kept", unit="days", choices=RETENTION)
    baseline: bool = setting(
        False, "whether the unpooled function is deployed, the control of the storm"
    )
    network: Network = section(Network, "the VPC")
    database: Database = section(Database, "the database")
    pooler: Pooler = section(Pooler, "the pooler")
    functions: Functions = section(Functions, "the functions")
    identity: Identity = section(Identity, "who may call")
    api: Api = section(Api, "the HTTP API")
    observability: Observability = section(Observability, "alarms")

    @classmethod
    def from_context(cls, context: Callable[[str], object]) -> "Config":
        """Build the settings of the chosen stage, with the override merged into its block.

        `context` looks a key of cdk.json's context up: `stages`, `stage` (default: dev) and
        `override` (JSON). Raise `ConfigurationError`, which lists every problem.
        """
        stage = str(context("stage") or "dev")
        block = _block(context("stages"), stage)
        problems: list[str] = []
        merged = _merge(block, _parse(context("override"), problems))
        config = read(cls, merged, problems, stage=stage)
        if config is not None:
            problems += contradictions(config)
        if config is None or problems:
            raise ConfigurationError(stage, problems)
        return config


def contradictions(config: Config) -> Iterator[str]:
    """Yield what is wrong between settings that are right each by itself."""
    yield from _timeouts(config)
    yield from _identity(config)
    if not 2 <= len(config.availability_zones) <= 3:
        yield f"availability_zones = {list(config.availability_zones)}: allowed are 2 or 3 zones"
    for zone in config.availability_zones:
        if zone[:-1] != config.region:
            yield f"availability_zones has {zone!r}: allowed are zones of {config.region}"
    if config.network.nat_gateways > len(config.availability_zones):
        zones = len(config.availability_zones)
        yield f"network.nat_gateways = {config.network.nat_gateways}: allowed are up to {zones}"
    if config.database.max_storage_gib < config.database.storage_gib * 1.1:
        yield (
            f"database.max_storage_gib = {config.database.max_storage_gib}: allowed is at least"
            f" a tenth more than database.storage_gib = {config.database.storage_gib}"
        )


def _timeouts(config: Config) -> Iterator[str]:
    chain = (
        ("pooler.query_wait_timeout", config.pooler.query_wait_timeout),
        ("functions.checkout_timeout", config.functions.checkout_timeout),
        ("functions.timeout", config.functions.timeout),
        ("the API's timeout", API_TIMEOUT),
    )
    for (inner, short), (outer, long) in itertools.pairwise(chain):
        if short >= long:
            yield f"{inner} = {short}: allowed is less than {outer} = {long}, timeouts nest"


def _identity(config: Config) -> Iterator[str]:
    issuer, audience = config.identity.issuer, list(config.identity.audience)
    if issuer == "cognito" and audience:
        yield f"identity.audience = {audience}: allowed is [] with 'cognito', which makes its own"
    if issuer != "cognito" and not audience:
        yield f"identity.audience = []: allowed is one audience or more for {issuer}"


def _block(stages: object, stage: str) -> object:
    if isinstance(stages, Mapping) and stage in stages:
        return stages[stage]
    known = ", ".join(stages) if isinstance(stages, Mapping) else "no stages"
    raise ConfigurationError(stage, [f"stage = {stage!r}: allowed are {known}"])


def _parse(override: object, problems: list[str]) -> object:
    if not isinstance(override, str):
        return override or {}
    try:
        return json.loads(override)
    except ValueError as error:
        problems.append(f"override = {override!r}: allowed is JSON, {error}")
        return {}


def _merge(block: object, override: object) -> object:
    if not isinstance(block, Mapping) or not isinstance(override, Mapping):
        return override
    return {**block, **{name: _merge(block.get(name), new) for name, new in override.items()}}
