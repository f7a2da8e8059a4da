"""What is wrong between settings that are right each by itself. Pure: no I/O, no CDK."""

import itertools
from collections.abc import Iterator
from ipaddress import AddressValueError, IPv4Interface, IPv4Network, NetmaskValueError
from math import floor

from lambda_pg_cdk.layer.roots import known_regions
from lambda_pg_cdk.stage.capacity import most_connections
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.limits import LONGEST_CHECKOUT, TASK_MEMORY

API_TIMEOUT = 29
"""Seconds after which the API gives up on a function; an HTTP API's own limit is 30."""

LONGEST_PROXY_NAME = 63
"""Characters of an RDS Proxy's name, in RDS's own description of its API (botocore's model)."""

LOCAL = "000000000000"
"""Account of the local cloud, where an issuer may speak HTTP."""

LONGEST_STACK = 128
LONGEST_LABEL = 63
LONGEST_COMMON_NAME = 64
"""Characters of a stack's name, of a part of a DNS name, and of a certificate's common name (RFC
5280, ub-common-name)."""

LAST_STACK = "-Observability"
"""What the longest name of a stack ends with."""

NOT_FOR_HOSTS = tuple(
    map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"))
)
"""This network, loopback, link-local, multicast and reserved (RFC 6890)."""

AURORA_SINCE = 4
"""The first minor version of PostgreSQL 17 that Aurora has."""

ALARM_PERIOD = 60
"""Seconds of which a metric's period is a multiple, from a minute up (PutMetricAlarm)."""


def inconsistencies(config: Config) -> Iterator[str]:
    """Yield each inconsistency with the settings' names, their values and what is allowed."""
    for check in (
        _names,
        _timeouts,
        _identity,
        _zones,
        _network,
        _addresses,
        _database,
        _roots,
        _aurora,
        _existing,
        _secrets,
        _pooler,
        _external,
    ):
        yield from check(config)


def alarm_problem(config: Config) -> str | None:
    """Say why nobody would learn of an alarm of a stage that is worth protecting.

    Not one of the inconsistencies: budget, tunnel and other apps need no address.
    """
    if config.observability.email is not None or not config.termination_protection:
        return None
    return (
        "observability.email = null with termination_protection = true: nobody would learn of an"
        " alarm; set an address that somebody reads, in the stage's block of cdk.json:"
        ' "observability": { "email": "…" }'
    )


def _names(config: Config) -> Iterator[str]:
    """Judge what is made of the app's and the stage's names."""
    longest = f"{config.stack_prefix}{LAST_STACK}"
    if len(longest) > LONGEST_STACK:
        yield (
            f"app = {config.app!r} with stage = {config.stage!r}: the stack {longest} would have"
            f" {len(longest)} characters; allowed are {LONGEST_STACK}, so choose a shorter app"
        )
    if any(len(label) > LONGEST_LABEL for label in config.zone.split(".")):
        yield (
            f"app = {config.app!r}: a part of the DNS name {config.zone} is longer than"
            f" {LONGEST_LABEL} characters; choose a shorter app, or set network.zone"
        )
    if config.pooler == "pgbouncer" and len(config.pooler_name) > LONGEST_COMMON_NAME:
        yield (
            f"the pooler's name {config.pooler_name} has {len(config.pooler_name)} characters, and"
            f" its certificate takes {LONGEST_COMMON_NAME}: set a shorter network.zone, or"
            " pgbouncer.endpoint_host"
        )


def queue_timeout(config: Config) -> tuple[str, int | None]:
    """Name the pooler's longest queue and its length in seconds; an external one is unknown."""
    return {
        "pgbouncer": ("pgbouncer.query_wait_timeout", config.pgbouncer.query_wait_timeout),
        "rds-proxy": ("rds_proxy.borrow_timeout", config.rds_proxy.borrow_timeout),
    }.get(config.pooler, ("the external pooler's queue", None))


def _timeouts(config: Config) -> Iterator[str]:
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


def _identity(config: Config) -> Iterator[str]:
    issuer, audience = config.identity.issuer, list(config.identity.audience)
    if issuer == "cognito" and audience:
        yield f"identity.audience = {audience}: allowed is [] with 'cognito', which makes its own"
    if issuer != "cognito" and not audience:
        yield f"identity.audience = []: allowed is one audience or more for {issuer}"
    if issuer.startswith("http://") and config.account != LOCAL:
        yield (
            f"identity.issuer = {issuer!r}: allowed is 'cognito' or an https:// URL, as API Gateway"
            " fetches the keys from there; http:// is for the local cloud"
        )


def _zones(config: Config) -> Iterator[str]:
    if not 2 <= len(config.availability_zones) <= 3:
        yield f"availability_zones = {list(config.availability_zones)}: allowed are 2 or 3 zones"
    if len(set(config.availability_zones)) < len(config.availability_zones):
        yield f"availability_zones = {list(config.availability_zones)}: allowed is each zone once"
    for zone in config.availability_zones:
        if zone[:-1] != config.region:
            yield f"availability_zones has {zone!r}: allowed are zones of {config.region}"
    if config.network.nat_gateways > len(config.availability_zones):
        zones = len(config.availability_zones)
        yield f"network.nat_gateways = {config.network.nat_gateways}: allowed are up to {zones}"


def _network(config: Config) -> Iterator[str]:
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
    if len(set(network.subnet_ids)) < len(network.subnet_ids):
        yield f"network.subnet_ids = {list(network.subnet_ids)}: allowed is each subnet once"
    if config.pooler == "pgbouncer" and len(network.subnet_cidrs) != zones:
        yield (
            f"network.subnet_cidrs = {list(network.subnet_cidrs)}: allowed are the addresses of"
            " network.subnet_ids, in their order, which PgBouncer's peers are numbered by"
        )


def _addresses(config: Config) -> Iterator[str]:
    network = config.network
    given = [("network.cidr", network.cidr)]
    given += [("network.subnet_cidrs", cidr) for cidr in network.subnet_cidrs]
    problems = [problem for name, cidr in given for problem in _range(name, cidr)]
    yield from problems
    if problems:
        return
    for one, other in itertools.combinations(network.subnet_cidrs, 2):
        if IPv4Network(one).overlaps(IPv4Network(other)):
            yield f"network.subnet_cidrs: {one} and {other} overlap, and subnets cannot"


def _range(name: str, cidr: str) -> Iterator[str]:
    """Judge one range of addresses whose shape is right already."""
    try:
        given = IPv4Interface(cidr)
    except (AddressValueError, NetmaskValueError):
        yield f"{name} = {cidr!r}: allowed are four numbers of up to 255 each"
        return
    if given.ip != given.network.network_address:
        yield f"{name} = {cidr!r}: allowed is the first address of the range, {given.network}"
    for other in NOT_FOR_HOSTS:
        if given.network.overlaps(other):
            yield f"{name} = {cidr!r}: allowed are addresses outside of {other}; use 10.0.0.0/8"


def _database(config: Config) -> Iterator[str]:
    database = config.database
    if database.max_storage_gib < database.storage_gib * 1.1:
        yield (
            f"database.max_storage_gib = {database.max_storage_gib}: allowed is at least"
            f" a tenth more than database.storage_gib = {database.storage_gib}"
        )
    most = most_connections(config)
    if (database.max_connections or 0) > most:
        yield (
            f"database.max_connections = {database.max_connections}: allowed is up to {most},"
            " twice RDS's default for the size, as each connection takes memory"
        )
    if (database.kind == "none") != (config.pooler == "external"):
        yield (
            f"database.kind = {database.kind!r} with pooler = {config.pooler!r}: allowed is 'none'"
            " with 'external' and only there, which brings its database along"
        )
    if database.name in RESERVED_NAMES and database.kind in {"instance", "aurora"}:
        yield (
            f"database.name = {database.name!r}: the engine reserves this word; choose another"
            f" name, such as {database.name + '_data'!r}"
        )


RESERVED_NAMES = frozenset(
    """
    all analyse analyze and any array as asc asymmetric both case cast check collate column
    constraint create current_catalog current_date current_role current_time current_timestamp
    current_user default deferrable desc distinct do else end except false fetch for foreign from
    grant group having in initially intersect into lateral leading limit localtime localtimestamp
    not null offset on only or order placing primary references returning select session_user some
    symmetric system_user table then to trailing true union unique user using variadic when where
    window with admin catalog db flag identity rdsadmin template0 template1
    """.split()  # noqa: SIM905 - a list would take a line for each
)
"""PostgreSQL 17's reserved words (its documentation, appendix C), then others that RDS was reported
to refuse, and databases that a server has already. RDS's whole list is not published."""


def _roots(config: Config) -> Iterator[str]:
    """Judge the region: without the roots that RDS signs by there, no login succeeds."""
    database, region = config.database, config.region
    if database.kind == "none" or database.ca_file is not None or region in known_regions():
        return
    yield (
        f"region = {region!r}: the layer has no roots of RDS there, so that every login at the"
        " database would fail. Add them, "
        f"`.venv/bin/python -m lambda_pg_cdk.layer.roots {region}`, or name a file that has them in"
        " database.ca_file"
    )


def _aurora(config: Config) -> Iterator[str]:
    database = config.database
    for name, acu in (("min_acu", database.min_acu), ("max_acu", database.max_acu)):
        if acu * 2 != int(acu * 2):
            yield f"database.{name} = {acu}: allowed are steps of 0.5 (ACU)"
    if database.min_acu > database.max_acu:
        yield (
            f"database.min_acu = {database.min_acu}: allowed is up to database.max_acu ="
            f" {database.max_acu}"
        )
    if database.kind != "aurora":
        return
    if (config.pooler, database.min_acu) == ("rds-proxy", 0):
        yield (
            "database.min_acu = 0: allowed is 0.5 or more with RDS Proxy, whose connections keep"
            " the cluster from ever pausing"
        )
    if database.backup_days == 0:
        yield "database.backup_days = 0: allowed is 1 to 35 days with database.kind = 'aurora'"
    if database.minor_version < AURORA_SINCE:
        yield (
            f"database.minor_version = {database.minor_version}: allowed is {AURORA_SINCE} or more"
            f" with database.kind = 'aurora', which began with {database.major_version}"
            f".{AURORA_SINCE}"
        )


def most_checkout(config: Config) -> int:
    """Return the longest checkout timeout that a function's timeout leaves room for."""
    return min(LONGEST_CHECKOUT, config.functions.timeout - 1)


def _existing(config: Config) -> Iterator[str]:
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
    kind = (database.existing.resource_id or "").partition("-")[0]
    if kind and (kind == "cluster") != database.existing.cluster:
        yield (
            f"database.existing.resource_id = {database.existing.resource_id!r} with"
            f" database.existing.cluster = {str(database.existing.cluster).lower()}: allowed is"
            " 'cluster-…' for a cluster and 'db-…' for an instance"
        )


def _secrets(config: Config) -> Iterator[str]:
    """Judge secrets that exist already: functions ask Secrets Manager in the stage's region."""
    for group, named in (
        ("database.existing", config.database.existing),
        ("external", config.external),
    ):
        secret, key = named.secret_arn, named.kms_key_arn
        if secret is not None and secret.split(":")[3] != config.region:
            yield (
                f"{group}.secret_arn = {secret!r}: allowed is a secret of the stage's region"
                f" {config.region}; replicate it there and name the replica"
            )
        if key is not None and (secret is None or key.split(":")[3] != secret.split(":")[3]):
            yield (
                f"{group}.kms_key_arn = {key!r}: allowed is a key of the region of"
                f" {group}.secret_arn = {secret!r}, which is encrypted with it"
            )
        if secret and key is None and config.account not in {None, LOCAL, secret.split(":")[4]}:
            yield (
                f"{group}.kms_key_arn = null with {group}.secret_arn = {secret!r}: a secret of"
                f" another account than {config.account} is readable only if a customer managed key"
                " encrypts it; set that key's ARN"
            )


def _pooler(config: Config) -> Iterator[str]:
    pgbouncer, proxy = config.pgbouncer, config.rds_proxy
    if pgbouncer.max_tasks < pgbouncer.tasks:
        yield (
            f"pgbouncer.max_tasks = {pgbouncer.max_tasks}: allowed is pgbouncer.tasks ="
            f" {pgbouncer.tasks} or more"
        )
    if pgbouncer.metrics_interval > ALARM_PERIOD and pgbouncer.metrics_interval % ALARM_PERIOD:
        yield (
            f"pgbouncer.metrics_interval = {pgbouncer.metrics_interval}: allowed above"
            f" {ALARM_PERIOD} are multiples of {ALARM_PERIOD}, as CloudWatch counts in minutes"
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
    if config.pooler == "rds-proxy" and "--" in config.proxy_name:
        yield (
            f"stage = {config.stage!r}: the proxy would be {config.proxy_name!r}, with two hyphens"
            " in a row, which RDS refuses; choose a stage without them"
        )


def _external(config: Config) -> Iterator[str]:
    if config.pooler == "external" and config.external.secret_arn is None:
        yield "external.secret_arn = null: a value is needed with pooler = 'external'"
    if config.pooler == "external" and config.in_network and config.external.port is None:
        yield (
            "external.port = null: a value is needed with network.vpc_id, the port of the secret's"
            " `url`, as the functions' security groups let them out to that port alone"
        )
