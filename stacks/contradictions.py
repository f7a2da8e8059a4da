"""What is wrong between settings that are right each by itself. Pure: no I/O, no CDK."""

import itertools
from collections.abc import Iterator
from math import floor
from typing import TYPE_CHECKING

from stacks.sizes import LARGEST, UnknownClassError, connections_of_acus, connections_of_class

if TYPE_CHECKING:
    from stacks.config import Config

API_TIMEOUT = 29
"""Seconds after which the API gives up on a function; an HTTP API's own limit is 30."""

LONGEST_PROXY_NAME = 63
"""Characters of an RDS Proxy's name, in RDS's own description of its API (botocore's model)."""

LONGEST_CHECKOUT = 20
"""Seconds up to which functions.checkout_timeout can be set."""

TASK_MEMORY = {256: (512, 1024, 2048), 512: (1024, 2048, 4096), 1024: (2048, 4096)}
"""MiB that Fargate combines with the CPU units of a task, of the sizes that can be set here."""


def contradictions(config: "Config") -> Iterator[str]:
    """Yield each contradiction with the settings' names, their values and what is allowed."""
    for check in (_timeouts, _identity, _zones, _network, _database, _existing, _pooler):
        yield from check(config)


def queue_timeout(config: "Config") -> tuple[str, int | None]:
    """Name the pooler's longest queue and its length in seconds; an external one is unknown."""
    return {
        "pgbouncer": ("pgbouncer.query_wait_timeout", config.pgbouncer.query_wait_timeout),
        "rds-proxy": ("rds_proxy.borrow_timeout", config.rds_proxy.borrow_timeout),
    }.get(config.pooler, ("the external pooler's queue", None))


def _timeouts(config: "Config") -> Iterator[str]:
    functions, database = config.functions, config.database
    waits = [
        queue_timeout(config),
        ("functions.checkout_timeout", functions.checkout_timeout),
        ("functions.timeout", functions.timeout),
        ("the API's timeout", API_TIMEOUT),
    ]
    statements = [
        ("database.statement_timeout", database.statement_timeout),
        ("functions.timeout", functions.timeout),
    ]
    for chain in (waits, statements):
        for (inner, short), (outer, long) in itertools.pairwise(chain):
            if short is not None and long is not None and short >= long:
                yield f"{inner} = {short}: allowed is less than {outer} = {long}, timeouts nest"
    if database.transaction_timeout < database.statement_timeout:
        yield (
            f"database.transaction_timeout = {database.transaction_timeout}: allowed is at least"
            f" database.statement_timeout = {database.statement_timeout}"
        )


def _identity(config: "Config") -> Iterator[str]:
    issuer, audience = config.identity.issuer, list(config.identity.audience)
    if issuer == "cognito" and audience:
        yield f"identity.audience = {audience}: allowed is [] with 'cognito', which makes its own"
    if issuer != "cognito" and not audience:
        yield f"identity.audience = []: allowed is one audience or more for {issuer}"


def _zones(config: "Config") -> Iterator[str]:
    if not 2 <= len(config.availability_zones) <= 3:
        yield f"availability_zones = {list(config.availability_zones)}: allowed are 2 or 3 zones"
    for zone in config.availability_zones:
        if zone[:-1] != config.region:
            yield f"availability_zones has {zone!r}: allowed are zones of {config.region}"
    if config.network.nat_gateways > len(config.availability_zones):
        zones = len(config.availability_zones)
        yield f"network.nat_gateways = {config.network.nat_gateways}: allowed are up to {zones}"


def _network(config: "Config") -> Iterator[str]:
    network, zones = config.network, len(config.availability_zones)
    if network.vpc_id is None:
        for name, given in (("ids", network.subnet_ids), ("cidrs", network.subnet_cidrs)):
            if given:
                yield f"network.subnet_{name} = {list(given)}: allowed is [] without network.vpc_id"
        return
    if len(network.subnet_ids) != zones:
        yield (
            f"network.subnet_ids = {list(network.subnet_ids)}: allowed is one subnet of"
            f" {network.vpc_id} for each of the {zones} availability_zones"
        )
    if config.pooler == "pgbouncer" and len(network.subnet_cidrs) != zones:
        yield (
            f"network.subnet_cidrs = {list(network.subnet_cidrs)}: allowed are the addresses of"
            " network.subnet_ids, in their order, which PgBouncer's peers are numbered by"
        )


def _database(config: "Config") -> Iterator[str]:
    database = config.database
    if database.max_storage_gib < database.storage_gib * 1.1:
        yield (
            f"database.max_storage_gib = {database.max_storage_gib}: allowed is at least"
            f" a tenth more than database.storage_gib = {database.storage_gib}"
        )
    if database.min_acu > database.max_acu:
        yield (
            f"database.min_acu = {database.min_acu}: allowed is up to database.max_acu ="
            f" {database.max_acu}"
        )
    most = most_connections(config)
    if (database.max_connections or 0) > most:
        yield (
            f"database.max_connections = {database.max_connections}: allowed is up to {most},"
            " twice RDS's default for the size, as each connection takes memory"
        )
    if (database.kind, config.pooler, database.min_acu) == ("aurora", "rds-proxy", 0):
        yield (
            "database.min_acu = 0: allowed is 0.5 or more with RDS Proxy, whose connections keep"
            " the cluster from ever pausing"
        )
    if (database.kind == "none") != (config.pooler == "external"):
        yield (
            f"database.kind = {database.kind!r} with pooler = {config.pooler!r}: allowed is 'none'"
            " with 'external' and only there, which brings its database along"
        )


def most_checkout(config: "Config") -> int:
    """Return the longest checkout timeout that a function's timeout leaves room for."""
    return min(LONGEST_CHECKOUT, config.functions.timeout - 1)


def most_connections(config: "Config") -> int:
    """Say what may be asked of a server: twice what it accepts by itself, if that is known."""
    database = config.database
    if database.kind == "aurora":
        return min(LARGEST, 2 * connections_of_acus(database.min_acu, database.max_acu))
    if database.kind != "instance":
        return LARGEST
    try:
        return min(LARGEST, 2 * connections_of_class(database.instance_class))
    except UnknownClassError:
        return LARGEST


def _existing(config: "Config") -> Iterator[str]:
    database, proxy = config.database, config.pooler == "rds-proxy"
    if database.kind != "existing":
        return
    needed: dict[str, object] = {
        "database.existing.host": database.existing.host,
        "database.existing.secret_arn": database.existing.secret_arn,
        "database.existing.security_group_id": database.existing.security_group_id,
        "database.max_connections": database.max_connections,
        "network.vpc_id": config.network.vpc_id,
    }
    if proxy:
        needed["database.existing.identifier"] = database.existing.identifier
    if config.by_token:
        needed["database.existing.resource_id"] = database.existing.resource_id
    for name, value in needed.items():
        if value is None:
            yield f"{name} = null: a value is needed with database.kind = 'existing'"


def _pooler(config: "Config") -> Iterator[str]:
    pgbouncer, proxy = config.pgbouncer, config.rds_proxy
    if pgbouncer.max_tasks < pgbouncer.tasks:
        yield (
            f"pgbouncer.max_tasks = {pgbouncer.max_tasks}: allowed is pgbouncer.tasks ="
            f" {pgbouncer.tasks} or more"
        )
    if pgbouncer.memory not in TASK_MEMORY[pgbouncer.cpu]:
        allowed = ", ".join(map(str, TASK_MEMORY[pgbouncer.cpu]))
        yield (
            f"pgbouncer.memory = {pgbouncer.memory}: allowed with pgbouncer.cpu ="
            f" {pgbouncer.cpu} is one of {allowed} (MiB), which Fargate combines with it"
        )
    if floor(pgbouncer.tasks * pgbouncer.maximum_percent / 100) == pgbouncer.tasks:
        yield (
            f"pgbouncer.tasks = {pgbouncer.tasks} with pgbouncer.maximum_percent ="
            f" {pgbouncer.maximum_percent}: no task could start beside the old ones, and none may"
            " stop before; allowed is 200, or more tasks"
        )
    if (config.pooler, proxy.auth, config.database.rotation) == (
        "rds-proxy",
        "secret",
        "alternating",
    ):
        yield (
            "database.rotation = 'alternating' with rds_proxy.auth = 'secret': allowed is 'single',"
            " as RDS Proxy knows only the current one of two users; or rds_proxy.auth = 'iam',"
            " which needs no rotation"
        )
    if proxy.max_idle_percent > proxy.max_connections_percent:
        yield (
            f"rds_proxy.max_idle_percent = {proxy.max_idle_percent}: allowed is up to"
            f" rds_proxy.max_connections_percent = {proxy.max_connections_percent}"
        )
    if config.pooler == "rds-proxy" and len(config.proxy_name) > LONGEST_PROXY_NAME:
        yield (
            f"app = {config.app!r}: the proxy would be {config.proxy_name!r}, of"
            f" {len(config.proxy_name)} characters; allowed are {LONGEST_PROXY_NAME}"
        )
    if config.pooler == "external" and config.external.secret_arn is None:
        yield "external.secret_arn = null: a value is needed with pooler = 'external'"
