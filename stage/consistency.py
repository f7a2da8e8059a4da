"""Check settings against each other, after each has been checked alone. Pure: no I/O, no CDK."""

import itertools
from collections.abc import Iterator
from ipaddress import AddressValueError, IPv4Interface, IPv4Network, NetmaskValueError
from math import floor

from lambda_pg_cdk.layer.roots import known_regions
from lambda_pg_cdk.stage.api_consistency import api_inconsistencies
from lambda_pg_cdk.stage.capacity import most_connections
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.limits import LONGEST_CHECKOUT, TASK_MEMORY
from lambda_pg_cdk.stage.messages import problem, shown
from lambda_pg_cdk.stage.sql_consistency import sql_inconsistencies

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
    """Yield a message for each inconsistency: the setting, its value and what must hold."""
    for check in (
        _names,
        _python,
        _sample,
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
        _pgbouncer,
        _rds_proxy,
        _external,
        sql_inconsistencies,
        api_inconsistencies,
    ):
        yield from check(config)


def alarm_problem(config: Config) -> str | None:
    """Say that alarms of a protected stage have no address, or return None.

    Not one of the inconsistencies: budget, tunnel and other apps need no address.
    """
    if config.observability.email is not None or not config.termination_protection:
        return None
    return problem(
        "observability.email",
        None,
        "be set when termination_protection is true: otherwise nobody receives the alarms. Set an"
        ' address in the stage\'s block of cdk.json: "observability": { "email": "…" }',
    )


def _names(config: Config) -> Iterator[str]:
    """Check the lengths of names that contain the app's and the stage's name."""
    longest = f"{config.stack_prefix}{LAST_STACK}"
    if len(longest) > LONGEST_STACK:
        yield problem(
            "app",
            config.app,
            f"be shorter with stage {shown(config.stage)}: the stack {longest} would have"
            f" {len(longest)} characters, and CloudFormation allows {LONGEST_STACK}",
        )
    if any(len(label) > LONGEST_LABEL for label in config.zone.split(".")):
        yield problem(
            "app",
            config.app,
            f"be shorter, or network.zone must be set: a part of the DNS name {config.zone} has"
            f" more than {LONGEST_LABEL} characters",
        )
    if config.pooler == "pgbouncer" and len(config.pooler_name) > LONGEST_COMMON_NAME:
        yield problem(
            "the pooler's name",
            config.pooler_name,
            f"have at most {LONGEST_COMMON_NAME} characters, for its certificate: set a shorter"
            " network.zone, or pgbouncer.endpoint_host",
        )


def _python(config: Config) -> Iterator[str]:
    versions = config.python
    if isinstance(versions, tuple) and len(set(versions)) < len(versions):
        yield problem("python", versions, "have each version once")


def _sample(config: Config) -> Iterator[str]:
    if config.baseline and not config.sample_api:
        yield problem(
            "baseline",
            config.baseline,
            "be false without sample_api: the unpooled function reads the sample's table",
        )


def queue_timeout(config: Config) -> tuple[str, int | None]:
    """Name the setting of the pooler's queue, and its seconds; None for an external pooler."""
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
                yield problem(
                    inner, short, f"be less than {outer} ({long} seconds), so that it ends first"
                )
    if database.transaction_timeout < database.statement_timeout:
        yield problem(
            "database.transaction_timeout",
            database.transaction_timeout,
            f"be at least database.statement_timeout ({database.statement_timeout} seconds)",
        )


def _identity(config: Config) -> Iterator[str]:
    issuer, audience = config.identity.issuer, config.identity.audience
    if issuer == "cognito" and audience:
        yield problem(
            "identity.audience",
            audience,
            "be [] with identity.issuer 'cognito', which creates the audience",
        )
    if issuer != "cognito" and not audience:
        yield problem(
            "identity.audience", audience, f"have at least one audience of {shown(issuer)}"
        )
    if issuer.startswith("http://") and config.account != LOCAL:
        yield problem(
            "identity.issuer",
            issuer,
            "be 'cognito' or an https:// URL, from which API Gateway fetches the keys; only the"
            " local cloud takes http://",
        )


def _zones(config: Config) -> Iterator[str]:
    zones, gateways = config.availability_zones, config.network.nat_gateways
    if not 2 <= len(zones) <= 3:
        yield problem("availability_zones", zones, "be 2 or 3 zones")
    if len(set(zones)) < len(zones):
        yield problem("availability_zones", zones, "have each zone once")
    for zone in zones:
        if zone[:-1] != config.region:
            yield problem("availability_zones", zones, f"be in {config.region}; {zone} is not")
    if gateways > len(zones):
        yield problem(
            "network.nat_gateways", gateways, f"be at most {len(zones)}, one for each zone"
        )


def _network(config: Config) -> Iterator[str]:
    network, zones = config.network, len(config.availability_zones)
    if network.vpc_id is None:
        for name, given in (("ids", network.subnet_ids), ("cidrs", network.subnet_cidrs)):
            if given:
                yield problem(f"network.subnet_{name}", given, "be [] without network.vpc_id")
        return
    if len(network.subnet_ids) != zones:
        yield problem(
            "network.subnet_ids",
            network.subnet_ids,
            f"have one subnet of {network.vpc_id} for each of the {zones} availability_zones",
        )
    if len(set(network.subnet_ids)) < len(network.subnet_ids):
        yield problem("network.subnet_ids", network.subnet_ids, "have each subnet once")
    if config.pooler == "pgbouncer" and len(network.subnet_cidrs) != zones:
        yield problem(
            "network.subnet_cidrs",
            network.subnet_cidrs,
            "have the address range of each of network.subnet_ids, in the same order: PgBouncer's"
            " tasks are numbered by their addresses",
        )


def _addresses(config: Config) -> Iterator[str]:
    network = config.network
    given = [("network.cidr", network.cidr)]
    given += [("network.subnet_cidrs", cidr) for cidr in network.subnet_cidrs]
    problems = [found for name, cidr in given for found in _range(name, cidr)]
    yield from problems
    if problems:
        return
    for one, other in itertools.combinations(network.subnet_cidrs, 2):
        if IPv4Network(one).overlaps(IPv4Network(other)):
            yield problem(
                "network.subnet_cidrs",
                network.subnet_cidrs,
                f"not overlap: {one} and {other} do",
            )


def _range(name: str, cidr: str) -> Iterator[str]:
    """Check one range of addresses whose shape is right already."""
    try:
        given = IPv4Interface(cidr)
    except (AddressValueError, NetmaskValueError):
        yield problem(name, cidr, "have four numbers of at most 255")
        return
    if given.ip != given.network.network_address:
        yield problem(name, cidr, f"begin with the first address of its range: {given.network}")
    for other in NOT_FOR_HOSTS:
        if given.network.overlaps(other):
            yield problem(name, cidr, f"be outside of {other}; use a part of 10.0.0.0/8")


def _database(config: Config) -> Iterator[str]:
    database = config.database
    if database.max_storage_gib < database.storage_gib * 1.1:
        yield problem(
            "database.max_storage_gib",
            database.max_storage_gib,
            f"be at least 10 % more than database.storage_gib ({database.storage_gib} GiB)",
        )
    most = most_connections(config)
    if (database.max_connections or 0) > most:
        yield problem(
            "database.max_connections",
            database.max_connections,
            f"be at most {most}, twice RDS's default for this size: each connection takes memory",
        )
    if config.pooler == "external" and database.kind != "none":
        yield problem(
            "database.kind",
            database.kind,
            "be 'none' with pooler 'external', which has its own database",
        )
    if config.pooler != "external" and database.kind == "none":
        yield problem(
            "database.kind",
            database.kind,
            f"be 'instance', 'aurora' or 'existing' with pooler {shown(config.pooler)}",
        )
    if database.name in RESERVED_NAMES and database.kind in {"instance", "aurora"}:
        yield problem(
            "database.name",
            database.name,
            f"not be a reserved word; use another name, such as {shown(database.name + '_data')}",
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
    """Check that the layer has the root certificates of RDS in the region."""
    database, region = config.database, config.region
    if database.kind == "none" or database.ca_file is not None or region in known_regions():
        return
    yield problem(
        "region",
        region,
        "be a region whose RDS root certificates the layer has: without them every login at the"
        f" database fails. Add them, `.venv/bin/python -m lambda_pg_cdk.layer.roots {region}`, or"
        " set database.ca_file to a file that has them",
    )


def _aurora(config: Config) -> Iterator[str]:
    database = config.database
    for name, acu in (("min_acu", database.min_acu), ("max_acu", database.max_acu)):
        if acu * 2 != int(acu * 2):
            yield problem(f"database.{name}", acu, "be a multiple of 0.5 (ACU)")
    if database.min_acu > database.max_acu:
        yield problem(
            "database.min_acu",
            database.min_acu,
            f"be at most database.max_acu ({database.max_acu} ACU)",
        )
    if database.kind != "aurora":
        return
    if (config.pooler, database.min_acu) == ("rds-proxy", 0):
        yield problem(
            "database.min_acu",
            database.min_acu,
            "be at least 0.5 (ACU) with RDS Proxy, whose connections keep the cluster from pausing",
        )
    if database.backup_days == 0:
        yield problem(
            "database.backup_days",
            database.backup_days,
            "be 1 to 35 (days) with database.kind 'aurora'",
        )
    if database.minor_version < AURORA_SINCE:
        yield problem(
            "database.minor_version",
            database.minor_version,
            f"be at least {AURORA_SINCE} with database.kind 'aurora', which offers"
            f" {database.major_version}.{AURORA_SINCE} and newer",
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
            yield problem(name, value, "be set with database.kind 'existing'")
    resource, cluster = database.existing.resource_id or "", database.existing.cluster
    if resource and resource.startswith("cluster-") != cluster:
        yield problem(
            "database.existing.resource_id",
            resource,
            f"be {'cluster' if cluster else 'db'}-… with database.existing.cluster"
            f" {shown(cluster)}: 'cluster-…' is a cluster, 'db-…' an instance",
        )


def _secrets(config: Config) -> Iterator[str]:
    """Check existing secrets: functions read them from Secrets Manager in the stage's region."""
    for group, named in (
        ("database.existing", config.database.existing),
        ("external", config.external),
    ):
        secret, key = named.secret_arn, named.kms_key_arn
        if secret is not None and secret.split(":")[3] != config.region:
            yield problem(
                f"{group}.secret_arn",
                secret,
                f"be a secret of the stage's region, {config.region}: replicate it to that region"
                " and set the replica's ARN",
            )
        if key is not None and (secret is None or key.split(":")[3] != secret.split(":")[3]):
            yield problem(
                f"{group}.kms_key_arn",
                key,
                f"be in the same region as {group}.secret_arn ({shown(secret)})",
            )
        if secret and key is None and config.account not in {None, LOCAL, secret.split(":")[4]}:
            yield problem(
                f"{group}.kms_key_arn",
                key,
                f"be set with {group}.secret_arn {shown(secret)}: account {config.account} can read"
                " a secret of another account only if a customer managed key encrypts it",
            )


def _pgbouncer(config: Config) -> Iterator[str]:
    settings = config.pgbouncer
    if settings.max_tasks < settings.tasks:
        yield problem(
            "pgbouncer.max_tasks",
            settings.max_tasks,
            f"be at least pgbouncer.tasks ({settings.tasks})",
        )
    if settings.metrics_interval > ALARM_PERIOD and settings.metrics_interval % ALARM_PERIOD:
        yield problem(
            "pgbouncer.metrics_interval",
            settings.metrics_interval,
            f"be a multiple of {ALARM_PERIOD} (seconds) above {ALARM_PERIOD}: CloudWatch's periods"
            " are whole minutes",
        )
    if settings.memory not in TASK_MEMORY[settings.cpu]:
        sizes = ", ".join(map(str, TASK_MEMORY[settings.cpu]))
        yield problem(
            "pgbouncer.memory",
            settings.memory,
            f"be one of {sizes} (MiB), which Fargate offers with pgbouncer.cpu {settings.cpu}",
        )
    if floor(settings.tasks * settings.maximum_percent / 100) == settings.tasks:
        yield problem(
            "pgbouncer.maximum_percent",
            settings.maximum_percent,
            f"be 200 with pgbouncer.tasks {settings.tasks}, or pgbouncer.tasks must be larger:"
            " otherwise a deployment can neither start a new task nor stop an old one",
        )


def _rds_proxy(config: Config) -> Iterator[str]:
    proxy, name = config.rds_proxy, config.proxy_name
    if proxy.max_idle_percent > proxy.max_connections_percent:
        yield problem(
            "rds_proxy.max_idle_percent",
            proxy.max_idle_percent,
            f"be at most rds_proxy.max_connections_percent ({proxy.max_connections_percent} %)",
        )
    if config.pooler != "rds-proxy":
        return
    if (proxy.auth, config.database.rotation) == ("secret", "alternating"):
        yield problem(
            "database.rotation",
            config.database.rotation,
            "be 'single' with rds_proxy.auth 'secret': RDS Proxy knows only the current one of two"
            " users. Or set rds_proxy.auth to 'iam', which needs no rotation",
        )
    if len(name) > LONGEST_PROXY_NAME:
        yield problem(
            "app",
            config.app,
            f"be shorter: the proxy {shown(name)} would have {len(name)} characters, and RDS allows"
            f" {LONGEST_PROXY_NAME}",
        )
    if "--" in name:
        yield problem(
            "stage",
            config.stage,
            f"not have two hyphens in a row: RDS refuses the proxy's name {shown(name)}",
        )


def _external(config: Config) -> Iterator[str]:
    if config.pooler != "external":
        return
    if config.external.secret_arn is None:
        yield problem("external.secret_arn", None, "be set with pooler 'external'")
    if config.in_network and config.external.port is None:
        yield problem(
            "external.port",
            None,
            "be set, because network.vpc_id is: to the port of the secret's `url`, since the"
            " functions' security groups allow that port only",
        )
