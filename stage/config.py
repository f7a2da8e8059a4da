"""The settings of a stage: the block of that name in cdk.json, typed and checked.

Seconds everywhere, unless a name says otherwise. The message about a wrong value has its dotted
name, the value and what must hold; all problems are listed at once. The classes are long, since
each attribute is one setting.
"""

# ruff: noqa: RUF009 - `section` makes a field with a default_factory, as dataclasses.field does

from dataclasses import dataclass

from lambda_pg_cdk.stage.limits import LONGEST_CHECKOUT, TASK_MEMORY
from lambda_pg_cdk.stage.patterns import HOST, ORIGIN, SECRET_ARN
from lambda_pg_cdk.stage.schema import REQUIRED, section, setting
from lambda_pg_cdk.stage.sql import Sql
from lambda_pg_cdk.stage.task import sql_database

RETENTION = (1, 3, 5, 7, 14, 30, 60, 90, 180, 365, 731, 1827, 3653)
"""Days that CloudWatch Logs can keep events, up to ten years."""

CIDR = r"\d{1,3}(\.\d{1,3}){3}/(1[6-9]|2[0-8])"
"""Addresses of a subnet; `consistency` checks the numbers."""
IDENTIFIER = r"(?=.{1,63}\Z)[a-z](-?[a-z0-9])*"
DB_CLASS = (
    r"t(3|4g)\.(micro|small|medium|(2?x)?large)"
    r"|([mr]([5-9]|\d\d)|x[2-9])[a-z]*\.(large|(2|4|8|12|16|24|32|48|96)?xlarge)"
)
"""Classes that some region offers for PostgreSQL 17; preflight asks RDS about the region."""
KEY_ARN = r"arn:[a-z-]+:kms:[a-z0-9-]+:\d{12}:key/[A-Za-z0-9-]+"
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
        "how private subnets reach AWS: through NAT gateways, or through interface endpoints only",
        choices=("nat", "endpoints"),
    )
    nat_gateways: int = setting(
        1,
        "NAT gateways, if network.egress is 'nat'; 2 survive the loss of a zone",
        minimum=1,
        maximum=3,
    )
    flow_logs: bool = setting(True, "whether rejected and accepted flows are logged")
    zone: str | None = setting(
        None,
        "name of the private DNS zone; null: '<stage>.<app>.internal'",
        pattern=HOST,
        shape="a DNS name",
    )
    bastion: bool = setting(
        False,
        "whether to add an instance through which administrators reach the database by Session"
        " Manager",
    )
    vpc_id: str | None = setting(
        None,
        "an existing VPC; null: a new one",
        pattern=r"vpc-([0-9a-f]{8}|[0-9a-f]{17})",
        shape="the id of a VPC, as in vpc-0123abcd",
    )
    subnet_ids: tuple[str, ...] = setting(
        (),
        "private subnets of that VPC, one for each zone in the order of availability_zones;"
        " AWS must be reachable from them",
        pattern=r"subnet-([0-9a-f]{8}|[0-9a-f]{17})",
        shape="ids of subnets, as in subnet-0123abcd",
    )
    subnet_cidrs: tuple[str, ...] = setting(
        (),
        "address ranges of these subnets, in the same order; PgBouncer's tasks are numbered by"
        " their addresses",
        pattern=CIDR,
        shape="IPv4 ranges with a prefix of 16 to 28, as in 10.0.16.0/20",
    )


@dataclass(frozen=True, kw_only=True)
class Existing:
    """A database that exists already, if `database.kind` is 'existing'."""

    host: str | None = setting(
        None, "endpoint of the database, not of a pooler", pattern=HOST, shape="a DNS name"
    )
    port: int = setting(5432, "port of the database", minimum=1024, maximum=65535)
    secret_arn: str | None = setting(
        None,
        "secret with the owner's username and password",
        pattern=SECRET_ARN,
        shape="the whole ARN of a secret, with the six characters at its end",
    )
    kms_key_arn: str | None = setting(
        None,
        "customer managed key that encrypts the secret; null: Secrets Manager's own key",
        pattern=KEY_ARN,
        shape="the ARN of a key, not of an alias",
    )
    security_group_id: str | None = setting(
        None,
        "security group of the database, which gets rules for pooler, migration and rotation",
        pattern=r"sg-([0-9a-f]{8}|[0-9a-f]{17})",
        shape="the id of a security group, as in sg-0123abcd",
    )
    identifier: str | None = setting(
        None,
        "name of the DB instance or cluster, for RDS Proxy and for metrics",
        pattern=IDENTIFIER,
        shape="up to 63 lower-case letters, digits and single hyphens, a letter first",
    )
    resource_id: str | None = setting(
        None,
        "resource id for IAM policies, if rds_proxy.auth is 'iam'; a new id, as after a"
        " restore, makes the migration run again",
        pattern=r"(db|cluster)-[A-Z0-9]+",
        shape="as in db-ABCDEFGHIJKL",
    )
    cluster: bool = setting(False, "whether the identifier is a cluster's")


@dataclass(frozen=True, kw_only=True)
class Database:
    """PostgreSQL on RDS, on Aurora, or one that exists already.

    Large because it has one attribute for each setting.
    """

    kind: str = setting(
        "instance",
        "what is provisioned: an RDS instance, an Aurora Serverless v2 cluster, or nothing:"
        " 'existing' is a database of yours, 'none' is the external pooler's",
        choices=("instance", "aurora", "existing", "none"),
    )
    major_version: int = setting(17, "PostgreSQL's major version", choices=(17,))
    # The newest that RDS and Aurora offer:
    # https://aws.amazon.com/about-aws/whats-new/2026/08/amazon-rds-postgresql-18-6-17-11-16-15-15-19-14-24/
    minor_version: int = setting(
        11,
        "PostgreSQL's minor version at creation; RDS installs newer ones in the maintenance window",
        minimum=1,
        maximum=99,
    )
    maintenance_start: str = setting(
        "sun:03:00",
        "start (UTC) of the weekly hour in which RDS maintains the server; the daily backup begins"
        " an hour before",
        pattern=r"(mon|tue|wed|thu|fri|sat|sun):([01]\d|2[0-3]):[0-5]\d",
        shape="a day and a time, as in sun:03:00",
    )
    instance_class: str = setting(
        "t4g.medium",
        "size of an RDS instance, without 'db.'",
        pattern=DB_CLASS,
        shape="an RDS class for PostgreSQL 17, as in t4g.medium or m7g.large",
    )
    min_acu: float = setting(
        1, "smallest size of an Aurora cluster", unit="ACU", minimum=0, maximum=256
    )
    max_acu: float = setting(
        8, "largest size of an Aurora cluster", unit="ACU", minimum=1, maximum=256
    )
    name: str = setting(
        "app", "name of the database", pattern=r"[a-z][a-z0-9_]{0,62}", shape="a lower-case name"
    )
    max_connections: int | None = setting(
        None,
        "server connections that PostgreSQL accepts, set in its parameter group; null: RDS's"
        " default for the class or the ACUs. A change takes effect at a reboot. The next change"
        " of the instance reboots it at once, also outside of the maintenance window",
        minimum=20,
        maximum=5000,
    )
    multi_az: bool = setting(
        True, "whether there is a standby or a reader in another zone, which takes over"
    )
    storage_gib: int = setting(20, "initial storage", unit="GiB", minimum=20, maximum=65536)
    max_storage_gib: int = setting(
        100,
        "size up to which RDS increases the storage automatically",
        unit="GiB",
        minimum=22,
        maximum=65536,
    )
    backup_days: int = setting(7, "days of backups kept", unit="days", minimum=0, maximum=35)
    deletion_protection: bool = setting(True, "whether RDS refuses to delete the database")
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
    transaction_timeout: int = setting(
        60, "longest transaction, set on the database", unit="seconds", minimum=1, maximum=900
    )
    other_connections: int = setting(
        5, "server connections kept free for administrators", minimum=2, maximum=100
    )
    rotation: str = setting(
        "alternating",
        "how the application's password is rotated: between two users, so that no login is"
        " refused, or for a single user",
        choices=("alternating", "single"),
    )
    rotation_days: int = setting(
        30, "days between two rotations", unit="days", minimum=1, maximum=1000
    )
    ca_file: str | None = setting(
        None,
        "file with the CA that signs the database's certificate; null: the RDS roots",
        pattern=PATH,
        shape="an absolute path",
    )
    existing: Existing = section(Existing, "where it is, if it exists already")


@dataclass(frozen=True, kw_only=True)
class PgBouncer:
    """PgBouncer on ECS Fargate, behind a load balancer.

    Large because it has one attribute for each setting.
    """

    tasks: int = setting(2, "tasks that always run; each uses one core", minimum=1, maximum=8)
    max_tasks: int = setting(4, "tasks up to which the service scales", minimum=1, maximum=8)
    cpu: int = setting(
        1024, "CPU of a task, 1024 is one core", unit="units", choices=tuple(TASK_MEMORY)
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
        "transaction",
        "when a server connection is returned: after each transaction, or when the client"
        " disconnects",
        choices=("transaction", "session"),
    )
    max_client_conn: int = setting(
        2000, "client connections for each task", minimum=10, maximum=55000
    )
    max_db_connections: int = setting(
        20,
        "server connections of each task, for all users together; with database.rotation"
        " 'alternating' each of the two users has half of them",
        minimum=2,
        maximum=4000,
    )
    query_wait_timeout: int = setting(
        1, "longest wait in the pooler's queue", unit="seconds", minimum=1, maximum=5
    )
    maximum_percent: int = setting(
        200, "tasks that may run during a rolling deployment", unit="percent", choices=(150, 200)
    )
    refresh_interval: int = setting(
        60,
        "time between two reads of the users' secret; after a refused login it is read at once",
        unit="seconds",
        minimum=1,
        maximum=3600,
    )
    deregistration_delay: int = setting(
        30, "time between the last new flow to a task and its drain", unit="seconds", minimum=0,
        maximum=3600,
    )  # fmt: skip
    drain_timeout: int = setting(
        30, "time for open transactions to finish when a task stops", unit="seconds", minimum=1,
        maximum=110,
    )  # fmt: skip
    metrics_interval: int = setting(
        60, "time between two lines of metrics", unit="seconds", minimum=1, maximum=3600
    )


@dataclass(frozen=True, kw_only=True)
class RdsProxy:
    """Amazon RDS Proxy."""

    auth: str = setting(
        "iam",
        "how functions log in at the proxy, and the proxy at the database: with IAM tokens, or"
        " with the application's secret",
        choices=("iam", "secret"),
    )
    max_connections_percent: int = setting(
        70, "share of max_connections that the proxy may open", unit="percent", minimum=1,
        maximum=100,
    )  # fmt: skip
    max_idle_percent: int = setting(
        35, "share of max_connections that the proxy keeps open when idle", unit="percent",
        minimum=0, maximum=100,
    )  # fmt: skip
    borrow_timeout: int = setting(
        1, "longest wait for a server connection", unit="seconds", minimum=1, maximum=300
    )
    idle_client_timeout: int = setting(
        1800, "idle time after which a client connection is closed", unit="seconds", minimum=1800,
        maximum=28800,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class External:
    """A pooler that exists already: of Supabase, Neon or Vercel, or yours."""

    secret_arn: str | None = setting(
        None,
        "secret with the pooled `url`, and `direct_url` for migrations",
        pattern=SECRET_ARN,
        shape="the whole ARN of a secret, with the six characters at its end",
    )
    kms_key_arn: str | None = setting(
        None,
        "customer managed key that encrypts the secret; null: Secrets Manager's own key",
        pattern=KEY_ARN,
        shape="the ARN of a key, not of an alias",
    )
    profile: str | None = setting(
        None,
        "profile of the pooler; null: the layer derives it from the URL's host and port",
        choices=(None, "pgbouncer", "rds-proxy", "supabase", "neon"),
    )
    port: int | None = setting(
        None,
        "port of the secret's `url`; required with network.vpc_id, where functions reach no"
        " other port",
        minimum=1,
        maximum=65535,
    )
    direct_port: int = setting(
        5432,
        "port of the secret's `direct_url`, for the migration",
        minimum=1,
        maximum=65535,
    )
    max_clients: int = setting(
        200, "client connections that it accepts from this stage", minimum=1, maximum=100000
    )
    ca_file: str | None = setting(
        None,
        "file in the function with the CA that signs its certificate; null: the layer's roots",
        pattern=PATH,
        shape="an absolute path",
    )


@dataclass(frozen=True, kw_only=True)
class Functions:
    """Settings that all functions of this app share."""

    memory: int = setting(512, "memory of a function", unit="MiB", minimum=128, maximum=10240)
    timeout: int = setting(
        20, "longest invocation behind the API", unit="seconds", minimum=2, maximum=25
    )
    migration_timeout: int = setting(
        300, "longest migration", unit="seconds", minimum=30, maximum=720
    )
    checkout_timeout: int = setting(
        3, "longest wait for a usable connection", unit="seconds", minimum=1,
        maximum=LONGEST_CHECKOUT,
    )  # fmt: skip
    reserved_concurrency: int | None = setting(
        None,
        "reserved concurrency of the sample function 'users' ('notes' and 'health' then reserve 5"
        " each); null: no reservation, and the API answers 503 to requests over the pooler's client"
        " limit",
        minimum=1,
        maximum=10000,
    )
    other_clients: int = setting(
        0, "client connections kept for functions that other apps attach", minimum=0, maximum=100000
    )
    deployment: str = setting(
        "AllAtOnce",
        "how traffic moves to a new version; all but 'AllAtOnce' roll back when an alarm fires",
        choices=(
            "AllAtOnce",
            "Canary10Percent5Minutes",
            "Canary10Percent15Minutes",
            "Linear10PercentEvery1Minute",
            "Linear10PercentEvery3Minutes",
        ),
    )
    snap_start: bool = setting(
        False, "whether new environments are restored from a snapshot of the initialised function"
    )
    log_level: str = setting(
        "INFO", "lowest severity that is logged", choices=("DEBUG", "INFO", "WARNING", "ERROR")
    )


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which tokens the API accepts."""

    issuer: str = setting(
        "cognito",
        "OpenID Connect issuer; 'cognito' creates a user pool and a client",
        pattern=ISSUER,
        shape="'cognito' or an https:// URL",
    )
    audience: tuple[str, ...] = setting(
        (),
        "accepted audiences or client ids, if the issuer is not 'cognito'",
        pattern=r"\S+",
        shape="texts without spaces",
    )
    scopes: bool = setting(
        True,
        "whether the sample's routes ask for a scope of the token, as in users:read",
    )


@dataclass(frozen=True, kw_only=True)
class Api:
    """The HTTP API, and what functions that use `lambda_pg.http_api` ask of a request."""

    rate_limit: int = setting(1000, "requests accepted", unit="a second", minimum=1, maximum=100000)
    burst_limit: int = setting(2000, "requests accepted at once", minimum=1, maximum=100000)
    max_body: int = setting(
        65_536,
        "size of a request's body; a larger one is answered 413",
        unit="bytes",
        minimum=1024,
        maximum=5_000_000,
    )
    require_idempotency_key: bool = setting(
        False, "whether a change without an Idempotency-Key is answered 400"
    )
    require_if_match: bool = setting(
        False, "whether a change of a row without an If-Match is answered 428"
    )
    openapi: bool = setting(
        False,
        "whether the sample function 'users' serves its OpenAPI document at /openapi.json and a"
        " page for it at /swagger, both to everybody",
    )
    origins: tuple[str, ...] = setting(
        (),
        "origins whose pages may send requests from a browser; with sql.enabled the same as"
        " sql.origins",
        pattern=ORIGIN,
        shape="origins, as in https://www.example.com, or *",
    )
    problem_types: str = setting(
        "docs/problems.md",
        "where this project's docs/problems.md can be read: the `type` of a refused request's"
        " answer links to its sections",
        pattern=r"[^\s#]{1,500}",
        shape="a URL or a path of up to 500 characters",
    )


@dataclass(frozen=True, kw_only=True)
class Observability:
    """Where alarms are sent."""

    email: str | None = setting(
        None, "address that alarms are sent to", pattern=r"[^@\s]+@[^@\s]+", shape="an address"
    )
    runbooks: str = setting(
        "docs/operations.md",
        "where this project's docs/operations.md can be read: alarms link to its runbooks",
        pattern=r"[^\s#]{1,500}",
        shape="a URL or a path of up to 500 characters",
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of one stage.

    Large because it has one attribute for each setting and each group of settings.
    """

    stage: str
    app: str = setting(
        "lambda-pg",
        "first part of the names of stacks and parameters, so that several apps can share an"
        " account",
        pattern=r"(?!aws|ssm)[a-z][a-z0-9]*(-[a-z0-9]+)*",
        shape="lower-case words with hyphens between, not beginning with aws or ssm",
    )
    account: str | None = setting(
        None,
        "AWS account; null: the account of the credentials",
        pattern=r"\d{12}",
        shape="12 digits",
    )
    region: str = setting(
        REQUIRED, "AWS region", pattern=r"[a-z]{2}(-[a-z]+)+-\d", shape="a region, as in eu-west-1"
    )
    availability_zones: tuple[str, ...] = setting(
        REQUIRED,
        "two or three zones of the region; set here, so that synth needs no look-up",
        pattern=r"[a-z]{2}(-[a-z]+)+-\d[a-z]",
        shape="zones of the region, as in eu-west-1a",
    )
    python: str | tuple[str, ...] = setting(
        "3.13",
        "Python version of the functions, or a list of versions: the layer is built for each, and"
        " the first is the default; 'interpreter': the version that runs synth",
        choices=("3.13", "3.14", "interpreter"),
    )
    architecture: str = setting(
        "arm64",
        "processor of functions and pooler; 'interpreter': this machine's",
        choices=("arm64", "x86_64", "interpreter"),
    )
    termination_protection: bool = setting(
        True, "whether the stacks that hold data are protected against deletion"
    )
    log_retention_days: int = setting(30, "days logs are kept", unit="days", choices=RETENTION)
    sample_api: bool = setting(
        False, "whether to deploy the sample functions 'users' and 'notes', with their routes"
    )
    baseline: bool = setting(
        False, "whether to deploy the unpooled function, the control of the storm"
    )
    network: Network = section(Network, "the VPC")
    database: Database = section(Database, "the database")
    pooler: str = setting(
        "pgbouncer",
        "what functions connect through",
        choices=("pgbouncer", "rds-proxy", "external"),
    )
    pgbouncer: PgBouncer = section(PgBouncer, "PgBouncer on ECS Fargate")
    rds_proxy: RdsProxy = section(RdsProxy, "RDS Proxy")
    external: External = section(External, "a pooler that exists already")
    functions: Functions = section(Functions, "the functions")
    identity: Identity = section(Identity, "which callers the API accepts")
    api: Api = section(Api, "the HTTP API")
    sql: Sql = section(Sql, "the function `sql`")
    observability: Observability = section(Observability, "alarms")

    @property
    def zone(self) -> str:
        """Name of the private DNS zone."""
        return self.network.zone or f"{self.stage}.{self.app}.internal"

    @property
    def in_network(self) -> bool:
        """Tell whether functions run in a VPC; a pooler on the internet needs none."""
        return self.pooler != "external" or self.network.vpc_id is not None

    @property
    def has_endpoints(self) -> bool:
        """Tell whether the stage's own VPC reaches AWS by interface endpoints alone."""
        return self.network.vpc_id is None and self.network.egress == "endpoints"

    @property
    def by_token(self) -> bool:
        """Tell whether functions log in with IAM tokens of their roles, without a password."""
        return self.pooler == "rds-proxy" and self.rds_proxy.auth == "iam"

    @property
    def owner_key_arn(self) -> str | None:
        """Customer managed key of the owner's secret; secrets that RDS creates have AWS's key."""
        existing = self.database.existing if self.database.kind == "existing" else None
        return existing.kms_key_arn if existing else None

    @property
    def pool_size(self) -> int:
        """Server connections of one user in a task of PgBouncer.

        PgBouncer does not share `max_db_connections` fairly: busy clients of one user would keep
        all of them from a rotation's second user. So each user has its own part.
        """
        return self.pgbouncer.max_db_connections // self.users_of_a_login

    @property
    def users_of_a_login(self) -> int:
        """Users that a login has in PostgreSQL: a rotation between two of them needs two."""
        return 2 if self.database.rotation == "alternating" else 1

    @property
    def sql_pool_size(self) -> int:
        """Server connections of one user of `/sql` in a task of PgBouncer; as `pool_size`."""
        return self.sql.part_of_a_role(self.users_of_a_login) // self.users_of_a_login

    @property
    def sql_database(self) -> str:
        """Name of the database that `/sql` connects to; only PgBouncer has a second one."""
        name = self.database.name
        return sql_database(name) if self.pooler == "pgbouncer" else name

    @property
    def pooler_name(self) -> str:
        """DNS name of PgBouncer, which is in its certificate."""
        return self.pgbouncer.endpoint_host or f"pooler.{self.zone}"

    @property
    def pooler_port(self) -> int:
        """Port that functions connect to; RDS Proxy has PostgreSQL's default."""
        return self.pgbouncer.port if self.pooler == "pgbouncer" else 5432

    @property
    def proxy_name(self) -> str:
        """Name of the RDS Proxy, one for each app and stage; in lower case, as RDS stores it."""
        return f"{self.app}-{self.stage}-pooler".lower()

    @property
    def stack_prefix(self) -> str:
        """First part of the stacks' names."""
        return "".join(word.title() for word in self.app.split("-")) + f"-{self.stage}"
