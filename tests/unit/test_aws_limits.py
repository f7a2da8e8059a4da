"""What AWS refuses of each setting of cdk.json: refused here, before anything is deployed.

One row for each setting. Where the page allows more than this app does, the row has our own edge.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.loading import load
from lambda_pg_cdk.stage.schema import ConfigurationError, describe

CONTEXT = json.loads((Path(__file__).parents[2] / "cdk.json").read_text())["context"]
STAGE = "dev"

API = "https://docs.aws.amazon.com/{}/latest/APIReference/API_{}.html"
RDS = "https://docs.aws.amazon.com/AmazonRDS/latest/"
CREATE = f"{RDS}APIReference/API_CreateDBInstance.html"
CREATE_CLUSTER = f"{RDS}APIReference/API_CreateDBCluster.html"
POOL = f"{RDS}APIReference/API_ConnectionPoolConfiguration.html"
LAMBDA = "https://docs.aws.amazon.com/lambda/latest/api/API_CreateFunction.html"
VPC = "https://docs.aws.amazon.com/vpc/latest/userguide/vpc-cidr-blocks.html"
SUBNETS = "https://docs.aws.amazon.com/vpc/latest/userguide/subnet-sizing.html"
EC2_IDS = "https://docs.aws.amazon.com/ec2/latest/devguide/ec2-resource-ids.html"
ARNS = "https://docs.aws.amazon.com/secretsmanager/latest/userguide/troubleshoot.html#ARN_secretnamehyphen"
KEYS = "https://docs.aws.amazon.com/secretsmanager/latest/userguide/auth-and-access_examples_cross.html"
ZONES = "https://docs.aws.amazon.com/Route53/latest/DeveloperGuide/DomainNameFormat.html"
FARGATE = "https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-cpu-memory-error.html"
CONTAINER = API.format("AmazonECS", "ContainerDefinition")
ALARM = API.format("AmazonCloudWatch", "PutMetricAlarm")
POSTGRES = "https://www.postgresql.org/docs/17/runtime-config-client.html"

LAMBDA_QUOTAS = "https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html"
SECRET_VALUES = API.format("secretsmanager", "GetSecretValue")
THROTTLING = "https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-throttling.html"
CORS = "https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-cors.html"

SECRET = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:owner-AbCdEf"
KEY = "arn:aws:kms:eu-west-1:111122223333:key/01234567-89ab-cdef"
NETWORK = {
    "vpc_id": "vpc-0a1b2c3d4e5f60718",
    "subnet_ids": ["subnet-0a1b2c3d4e5f60718", "subnet-0a1b2c3d4e5f60719"],
    "subnet_cidrs": ["10.0.16.0/20", "10.0.32.0/20"],
}
EXISTING = {
    "network": NETWORK,
    "database": {
        "kind": "existing",
        "max_connections": 200,
        "existing": {
            "host": "database.example.com",
            "secret_arn": SECRET,
            "security_group_id": "sg-0a1b2c3d4e5f60718",
            "identifier": "database",
            "resource_id": "db-ABCDEFGHIJKLMNOPQRSTUVWXY",
        },
    },
}
AURORA = {"database": {"kind": "aurora", "max_connections": None}}
EXTERNAL = {"pooler": "external", "database": {"kind": "none"}, "external": {"secret_arn": SECRET}}
PROXY = {"pooler": "rds-proxy"}
WIDE = {"functions": {"timeout": 25, "checkout_timeout": 20}}


@dataclass(frozen=True)
class Limit:
    """What a page says of one setting, and values on both sides of it."""

    setting: str
    page: str
    refused: tuple[object, ...]
    taken: tuple[object, ...]
    beside: dict[str, Any] = field(default_factory=dict)
    """Other settings that the values need."""

    def override(self, value: object) -> dict[str, Any]:
        """Set the value, with what it needs beside it."""
        *groups, name = self.setting.split(".")
        made: dict[str, Any] = json.loads(json.dumps(self.beside))
        inner = made
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[name] = value
        return made


LIMITS = (
    # A parameter's name cannot begin with aws or ssm; a stack's has 128 characters at the most.
    Limit(
        "app",
        API.format("systems-manager", "PutParameter"),
        ("aws-shop", "ssmtool", "Shop", "a" * 120),
        ("shop", "web-shop"),
    ),
    Limit("account", API.format("STS", "GetCallerIdentity"), ("12", "1" * 13), ("1" * 12, None)),
    Limit(
        "region",
        f"{RDS}UserGuide/UsingWithRDS.SSL.html",
        ("Ireland", "il-central-1", "cn-north-1", "us-gov-west-1"),
        ("eu-west-1",),
    ),
    # A subnet group and a proxy need two zones.
    Limit(
        "availability_zones",
        f"{RDS}UserGuide/USER_VPC.WorkingWithRDSInstanceinaVPC.html",
        (["eu-west-1a"], ["eu-west-1a", "eu-west-1a"], ["eu-west-1a", "us-east-1b"]),
        (["eu-west-1a", "eu-west-1c"],),
    ),
    Limit(
        "python",
        "https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtimes.html",
        ("3.9", "3.10", "python3.13"),
        ("3.13", "3.14"),
    ),
    Limit("architecture", LAMBDA, ("x86", "amd64"), ("arm64", "x86_64")),
    Limit(
        "log_retention_days",
        API.format("AmazonCloudWatchLogs", "PutRetentionPolicy"),
        (0, 2, 100, 366, 3654),
        (1, 365, 3653),
    ),
    # 16 to 28; 24 here, as a subnet gets an eighth of it.
    Limit(
        "network.cidr",
        VPC,
        (
            "10.0.0.0/15",
            "10.0.0.0/29",
            "10.0.0.9/16",
            "300.0.0.0/16",
            "127.0.0.0/16",
            "169.254.0.0/16",
            "224.0.0.0/16",
        ),
        ("10.1.0.0/16", "192.168.0.0/24"),
    ),
    Limit("network.egress", VPC, ("igw",), ("nat", "endpoints")),
    Limit("network.nat_gateways", VPC, (0, 3, 4), (1, 2)),
    Limit(
        "network.zone",
        ZONES,
        ("a..b", "-a.b", "a b", f"{'a' * 64}.internal", ".".join(["abcdefg"] * 40), "x" * 60),
        ("internal", "dev.example.internal"),
    ),
    Limit("network.vpc_id", EC2_IDS, ("vpc-1", "subnet-0a1b2c3d"), (), NETWORK),
    Limit(
        "network.subnet_ids",
        EC2_IDS,
        (["subnet-1"], ["subnet-0a1b2c3d4e5f60718"], ["subnet-0a1b2c3d4e5f60718"] * 2),
        (NETWORK["subnet_ids"],),
        EXISTING,
    ),
    Limit(
        "network.subnet_cidrs",
        SUBNETS,
        (
            ["10.0.0.0/15", "10.8.0.0/20"],
            ["10.0.0.0/29", "10.0.16.0/20"],
            ["10.0.0.1/20", "10.0.16.0/20"],
            ["10.0.0.0/20", "10.0.0.0/24"],
            ["10.0.0.0/20", "10.0.0.0/20"],
            ["256.0.0.0/20", "10.0.0.0/20"],
        ),
        (["10.0.0.0/20", "10.0.16.0/28"],),
        EXISTING,
    ),
    Limit("database.kind", CREATE, ("mysql",), ("instance",)),
    Limit(
        "database.major_version",
        f"{RDS}PostgreSQLReleaseNotes/postgresql-versions.html",
        (12, 16),
        (17,),
    ),
    Limit(
        "database.minor_version",
        f"{RDS}AuroraPostgreSQLReleaseNotes/AuroraPostgreSQL.Updates.html",
        (0, 3),
        (4, 11),
        AURORA,
    ),
    Limit(
        "database.maintenance_start",
        CREATE,
        ("Sunday 3", "sun:24:00", "sun:3:00", "sun:03:00-sun:04:00"),
        ("sun:03:00", "mon:00:00", "sat:23:59"),
    ),
    Limit(
        "database.instance_class",
        f"{RDS}UserGuide/Concepts.DBInstanceClass.Support.html",
        (
            *("db.t4g.small", "t2.micro", "m4.large", "r4.large", "t4g.nano", "m7g.medium"),
            *("c7g.large", "m7g.3xlarge", "t4g.4xlarge", "x1.large"),
        ),
        ("t3.micro", "t4g.2xlarge", "m7g.large", "r8gd.48xlarge", "m10g.xlarge", "x2iedn.16xlarge"),
    ),
    Limit(
        "database.min_acu",
        f"{RDS}APIReference/API_ServerlessV2ScalingConfiguration.html",
        (-0.5, 0.7, 256.5, 9),
        (0, 0.5, 1, 8),
        AURORA,
    ),
    Limit(
        "database.max_acu",
        f"{RDS}APIReference/API_ServerlessV2ScalingConfiguration.html",
        (0.5, 1.2, 257),
        (2.5, 256),
        AURORA,
    ),
    Limit(
        "database.name",
        CREATE,
        (
            "my-app",
            "1app",
            "a" * 64,
            "App",
            "grant",
            "catalog",
            "identity",
            "db",
            "user",
            "template1",
        ),
        ("a" * 63, "app_2", "postgres"),
    ),
    Limit("database.max_connections", f"{RDS}UserGuide/CHAP_Limits.html", (5, 5001), (150, 300)),
    Limit("database.storage_gib", CREATE, (19, 65537), (20, 90)),
    Limit(
        "database.max_storage_gib",
        f"{RDS}UserGuide/USER_PIOPS.Autoscaling.html",
        (21, 65537),
        (22, 65536),
    ),
    Limit("database.backup_days", CREATE, (-1, 36), (0, 35)),
    # Aurora has no way to turn backups off.
    Limit("database.backup_days", CREATE_CLUSTER, (0, 36), (1, 35), AURORA),
    Limit("database.statement_timeout", POSTGRES, (0, 901), (1, 19)),
    Limit("database.lock_timeout", POSTGRES, (0, 901), (1, 900)),
    Limit("database.idle_in_transaction_timeout", POSTGRES, (0, 901), (1, 900)),
    Limit("database.transaction_timeout", POSTGRES, (0, 901), (10, 900)),
    Limit("database.other_connections", f"{RDS}UserGuide/CHAP_Limits.html", (1, 101), (2, 10)),
    Limit("database.rotation", ARNS, ("both",), ("single", "alternating")),
    Limit(
        "database.rotation_days",
        API.format("secretsmanager", "RotationRulesType").replace(
            "/latest/", "/latest/apireference/"
        ),
        (0, 1001),
        (1, 1000),
    ),
    Limit("database.ca_file", LAMBDA, ("rds.pem",), ("/var/task/rds.pem", None)),
    Limit(
        "database.existing.host",
        ZONES,
        ("a..b", "host:5432", f"{'a' * 64}.example"),
        ("db.example.com", "10.0.0.7"),
        EXISTING,
    ),
    Limit("database.existing.port", CREATE, (80, 65536), (1150, 65535), EXISTING),
    Limit(
        "database.existing.secret_arn",
        ARNS,
        (
            "owner",
            "arn:aws:secretsmanager:eu-west-1:111122223333:secret:owner",
            SECRET.replace("eu-west-1", "us-east-1"),
        ),
        (SECRET, SECRET.replace("owner", "rds!db-0123")),
        EXISTING,
    ),
    # A secret of another account can only be read under a key of that account.
    Limit(
        "database.existing.kms_key_arn",
        KEYS,
        (
            "alias/owner",
            KEY.replace("key/", "alias/"),
            KEY.replace("eu-west-1", "us-east-1"),
        ),
        (KEY, None),
        EXISTING,
    ),
    Limit(
        "database.existing.kms_key_arn",
        KEYS,
        (None,),
        (KEY,),
        {**EXISTING, "account": "444455556666"},
    ),
    Limit(
        "database.existing.security_group_id",
        EC2_IDS,
        ("sg-1", "default"),
        ("sg-0a1b2c3d",),
        EXISTING,
    ),
    Limit(
        "database.existing.identifier",
        CREATE,
        ("1db", "My-Db", "db-", "my--db", "a" * 64),
        ("a" * 63, "my-db-2"),
        EXISTING,
    ),
    Limit(
        "database.existing.resource_id",
        f"{RDS}UserGuide/UsingWithRDS.IAMDBAuth.IAMPolicy.html",
        ("my-db", "db-abc", "cluster-ABCDEFGHIJKL"),
        ("db-ABCDEFGHIJKL",),
        EXISTING,
    ),
    Limit("pooler", CREATE, ("pgpool",), ("pgbouncer", "rds-proxy")),
    Limit("pgbouncer.tasks", CONTAINER, (0, 9), (1, 3)),
    Limit("pgbouncer.max_tasks", CONTAINER, (0, 9), (2, 3)),
    Limit("pgbouncer.cpu", FARGATE, (0, 128, 1000), (512, 1024)),
    Limit("pgbouncer.memory", FARGATE, (512, 1024, 8192), (2048, 4096)),
    Limit("pgbouncer.memory", FARGATE, (256, 4096), (512, 1024, 2048), {"pgbouncer": {"cpu": 256}}),
    Limit("pgbouncer.port", CONTAINER, (0, 1023, 65536), (1024, 65535)),
    # A common name has 64 characters at the most (RFC 5280, ub-common-name).
    Limit(
        "pgbouncer.endpoint_host",
        ZONES,
        ("a b", "a..b", f"{'a' * 60}.{'b' * 60}"),
        ("pooler.example.com", "127.0.0.1"),
    ),
    Limit("pgbouncer.pool_mode", CONTAINER, ("statement",), ("transaction",)),
    Limit("pgbouncer.max_client_conn", CONTAINER, (9, 55001), (1000, 5000)),
    Limit("pgbouncer.max_db_connections", CONTAINER, (1, 4001), (2, 15)),
    Limit("pgbouncer.query_wait_timeout", CONTAINER, (0, 6), (1, 2)),
    Limit(
        "pgbouncer.maximum_percent",
        API.format("AmazonECS", "DeploymentConfiguration"),
        (100, 201),
        (150, 200),
    ),
    Limit("pgbouncer.refresh_interval", CONTAINER, (0, 3601), (1, 3600)),
    Limit(
        "pgbouncer.deregistration_delay",
        API.format("elasticloadbalancing", "TargetGroupAttribute"),
        (-1, 3601),
        (0, 3600),
    ),
    # 120 s, of which the supervisor keeps 10.
    Limit("pgbouncer.drain_timeout", CONTAINER, (0, 111), (1, 110)),
    Limit("pgbouncer.metrics_interval", ALARM, (0, 90, 3601), (10, 60, 3600)),
    Limit("rds_proxy.auth", POOL, ("password",), ("iam",), PROXY),
    Limit("rds_proxy.max_connections_percent", POOL, (0, 101), (35, 80), PROXY),
    Limit("rds_proxy.max_idle_percent", POOL, (-1, 71), (0, 70), PROXY),
    Limit("rds_proxy.borrow_timeout", POOL, (0, 301), (1, 19), {**PROXY, **WIDE}),
    Limit(
        "rds_proxy.idle_client_timeout",
        f"{RDS}UserGuide/rds-proxy-creating.html",
        (0, 28801),
        (1800, 28800),
        PROXY,
    ),
    Limit(
        "external.secret_arn",
        ARNS,
        ("url", SECRET.removesuffix("-AbCdEf"), SECRET.replace("eu-west-1", "us-east-1")),
        (SECRET,),
        EXTERNAL,
    ),
    Limit(
        "external.kms_key_arn",
        KEYS,
        ("alias/owner", KEY.replace("eu-west-1", "us-east-1")),
        (KEY, None),
        EXTERNAL,
    ),
    Limit("external.profile", LAMBDA, ("mysql",), ("supabase", None), EXTERNAL),
    Limit("external.port", LAMBDA, (0, 65536), (6543, None), EXTERNAL),
    Limit("external.direct_port", LAMBDA, (0, 65536), (5432, 5433), EXTERNAL),
    Limit("external.max_clients", LAMBDA, (0, 100001), (200, 1000), EXTERNAL),
    Limit("external.ca_file", LAMBDA, ("ca.pem",), ("/var/task/ca.pem",), EXTERNAL),
    Limit("functions.memory", LAMBDA, (127, 10241), (128, 10240)),
    Limit(
        "functions.timeout",
        "https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-quotas.html",
        (1, 26, 900),
        (11, 25),
    ),
    Limit("functions.migration_timeout", LAMBDA, (0, 901), (30, 720)),
    Limit("functions.checkout_timeout", LAMBDA, (0, 21), (2, 4)),
    Limit("functions.reserved_concurrency", LAMBDA, (0, -1, 10001), (1, 20, None)),
    Limit("functions.other_clients", LAMBDA, (-1, 100001), (0, 50)),
    Limit(
        "functions.deployment",
        "https://docs.aws.amazon.com/codedeploy/latest/userguide/deployment-configurations.html",
        ("Canary20Percent1Minute",),
        ("AllAtOnce", "Linear10PercentEvery1Minute"),
    ),
    Limit("functions.log_level", LAMBDA, ("VERBOSE",), ("DEBUG",)),
    Limit(
        "identity.issuer",
        "https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-jwt-authorizer.html",
        ("http://issuer.example", "http://127.0.0.1:8123", "https://a b"),
        ("https://issuer.example",),
        {"identity": {"audience": ["app"]}},
    ),
    Limit(
        "identity.audience",
        "https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-jwt-authorizer.html",
        ([""], ["a b"]),
        (["app"],),
        {"identity": {"issuer": "https://issuer.example"}},
    ),
    Limit(
        "api.rate_limit",
        "https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-throttling.html",
        (0, 100001),
        (1, 100000),
    ),
    Limit(
        "api.burst_limit",
        "https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-throttling.html",
        (0, 100001),
        (1, 100000),
    ),
    # Lambda takes requests of 6 MB, and base64 makes a body a third larger.
    Limit("api.max_body", LAMBDA_QUOTAS, (1023, 5_000_001), (1024, 5_000_000)),
    Limit(
        "api.origins",
        CORS,
        (
            *(["example.com"], ["https://example.com/"], ["https://Example.com"]),
            *(["https://example.com:443"], ["*", "https://example.com"]),
        ),
        (["*"], ["https://www.example.com", "http://localhost:8080"]),
    ),
    # The `type` of RFC 9457 is a reference to a URI.
    Limit(
        "api.problem_types",
        "https://www.rfc-editor.org/rfc/rfc9457#section-3.1.1",
        ("a b", "https://x/#problems"),
        ("https://x/problems", "docs/problems.md"),
    ),
    # Of /sql: what has no page of AWS has our own edges.
    *(
        Limit(f"sql.{name}", page, refused, taken, {"sql": {"enabled": True}})
        for name, page, refused, taken in (
            ("roles", POSTGRES, (["owner"],), (["reader"], ["reader", "writer"])),
            ("max_db_connections", POSTGRES, (0, 1, 1001), (2, 4)),
            ("role_connections", POSTGRES, (0, 1, 1001), (2, 4, None)),
            ("reserved_concurrency", LAMBDA, (0, 10001), (1, 10000)),
            ("timeout", LAMBDA, (1, 3, 26), (16, 25)),
            ("rate_limit", THROTTLING, (0, 100001), (1, 100000)),
            ("burst_limit", THROTTLING, (0, 100001), (1, 100000)),
            ("statement_timeout", POSTGRES, (0, 901), (1, 15)),
            ("lock_timeout", POSTGRES, (0, 901), (1, 900)),
            ("transaction_timeout", POSTGRES, (0, 9, 20, 901), (10, 19)),
            ("key_lifetime", SECRET_VALUES, (0, 3601), (1, 3600)),
            ("max_rows", LAMBDA_QUOTAS, (0, 1_000_001), (1, 1_000_000)),
            ("max_bytes", LAMBDA_QUOTAS, (999, 50_000_001), (1000, 50_000_000)),
            ("max_statements", LAMBDA_QUOTAS, (0, 10_001), (1, 10_000)),
            ("max_request_bytes", LAMBDA_QUOTAS, (999, 5_000_001), (1000, 5_000_000)),
            ("origins", CORS, (["example.com"], ["https://a b"]), (["https://a.example"], ["*"])),
            ("hosts", ZONES, (["https://a.example"], ["a b"]), (["pool.example.com"],)),
            ("statements", LAMBDA_QUOTAS, ("/a.json", "../a.json"), ("sql/a.json", None)),
            ("reader_secret_arn", ARNS, ("x", SECRET), (None,)),
            ("writer_secret_arn", ARNS, ("x", SECRET), (None,)),
            ("caller_secret_arn", ARNS, ("x", SECRET), (None,)),
        )
    ),
    Limit("observability.email", API.format("sns", "Subscribe"), ("nobody", "a b@c"), ("a@b.c",)),
    # An alarm's description has 1,024 characters at the most, and a link is a part of it.
    Limit(
        "observability.runbooks",
        ALARM,
        ("a b", "https://x/" + "a" * 500),
        ("https://x/operations",),
    ),
)

SWITCHES = {
    "api.openapi",
    "api.require_idempotency_key",
    "api.require_if_match",
    "identity.scopes",
    "termination_protection",
    "baseline",
    "sample_api",
    "network.flow_logs",
    "network.bastion",
    "database.multi_az",
    "database.deletion_protection",
    "database.existing.cluster",
    "functions.snap_start",
    "sql.enabled",
    "sql.gzip",
    "sql.jwt",
}
"""True or false, of which AWS takes both."""


def configure(override: object, stage: str = STAGE) -> Config:
    """Read the stage as `cdk -c override=…` does."""
    stages = {**CONTEXT["stages"], stage: CONTEXT["stages"][STAGE]}
    asked = {"stages": stages, "stage": stage, "override": json.dumps(override)}
    return load(asked.get)


def sides(name: str) -> list[Any]:
    """Give each value of one side of each limit, as a parameter with a name."""
    return [
        pytest.param(limit, value, id=f"{limit.setting}-{str(value)[:40]}")
        for limit in LIMITS
        for value in getattr(limit, name)
    ]


@pytest.mark.parametrize(("limit", "value"), sides("refused"))
def test_what_aws_refuses_is_refused_before(limit: Limit, value: object) -> None:
    """The message has the setting, the value and what must hold."""
    with pytest.raises(ConfigurationError) as refused:
        configure(limit.override(value))
    told = [problem for problem in refused.value.problems if limit.setting in problem]
    assert told, refused.value.problems
    shown = value if isinstance(value, list) else ["null" if value is None else value]
    assert any(str(part) in told[0] for part in shown), told
    assert re.fullmatch(r".+ is .+; must .+", told[0]), told


@pytest.mark.parametrize(("limit", "value"), sides("taken"))
def test_what_aws_takes_is_taken(limit: Limit, value: object) -> None:
    """Nothing is refused that a page allows and this app can use."""
    configure(limit.override(value))


def test_every_setting_has_its_limit() -> None:
    """A new setting without a row for what AWS accepts fails here."""
    settings = {name for name, _, _ in describe(Config)}
    assert {limit.setting for limit in LIMITS} | SWITCHES == settings
    assert all(limit.page.startswith("https://") and limit.refused for limit in LIMITS)


@pytest.mark.parametrize("stage", ["my_stage", "a b", "a/b", "-a", "a-", "x" * 64])
def test_a_stage_that_names_no_stack_is_refused(stage: str) -> None:
    """Stacks, parameters and a DNS zone are named by it."""
    with pytest.raises(ConfigurationError, match="; must be up to 63 letters, digits and hyphens"):
        configure({}, stage)


def test_a_proxy_s_name_has_no_two_hyphens_in_a_row() -> None:
    """It has the stage's name in it, and RDS refuses it (CreateDBProxy); a stack's name may."""
    with pytest.raises(ConfigurationError, match=r"stage is 'a--b'; .*'lambda-pg-a--b-pooler'"):
        configure(PROXY, "a--b")
    configure(PROXY, "a-b")
    configure({}, "a--b")


def test_an_issuer_of_the_local_cloud_may_speak_http() -> None:
    """API Gateway never sees it."""
    issuer = {"identity": {"issuer": "http://127.0.0.1:8123", "audience": ["app"]}}
    assert configure({**issuer, "account": "000000000000"}).identity.audience == ("app",)
