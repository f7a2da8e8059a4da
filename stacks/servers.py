"""The database server: an RDS instance, an Aurora cluster, or one that exists already."""

from dataclasses import dataclass
from typing import Any, cast

from aws_cdk import Aws, CfnElement, Duration, Fn, RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_rds as rds
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from lambda_pg_cdk.stacks.nag_exceptions import (
    aws_policy,
    suppress,
    suppress_by_id,
    suppress_permission,
)
from lambda_pg_cdk.stacks.network import NetworkStack, retention
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.maintenance import backup_window, maintenance_window
from lambda_pg_cdk.stage.server_log import LOG_PARAMETERS

PORT = 5432
MASTER = "lambda_pg_owner"
LOG_RETENTION = "LogRetentionaae0aa3c5b4d4f87b02d85b201efdd8a"
"""Id of CDK's own function for log groups that AWS creates; a stack has one."""
OWN_LOGS = "/aws/lambda/*-LogRetention*"
"""Log group of that function. CloudFormation chooses its name: the stack's name, the function's and
a random part, cut to 64 characters."""


@dataclass(frozen=True)
class Server:
    """What the rest of the app has to know about the server, of every kind."""

    host: str
    port: str
    rule_port: int
    """The same port as a number, for security groups."""
    group_id: str
    """Security group that lets clients in."""
    owner_secret_arn: str
    """Name and password of the owner of the database."""
    identifier: str
    """Name of the instance or the cluster; '' if it is not known."""
    resource_id: str
    """The id that `rds-db:connect` uses; '' if it is not known."""
    cluster: bool
    """Whether the identifier and the id are a cluster's."""


def new_server(scope: Construct, config: Config, network: NetworkStack) -> Server:
    """Create what `database.kind` says, or describe what exists."""
    if config.database.kind == "existing":
        return _existing(config)
    group = ec2.SecurityGroup(
        scope,
        "SecurityGroup",
        vpc=network.vpc,
        description="PostgreSQL: pooler, migration and rotation only",
        allow_all_outbound=False,
    )
    shared = _shared(config, network, group)
    make = _cluster if config.database.kind == "aurora" else _instance
    return make(scope, config, group, shared)


def _shared(config: Config, network: NetworkStack, group: ec2.SecurityGroup) -> dict[str, Any]:
    """Return the properties that an instance and a cluster have in common."""
    settings = config.database
    return {
        "vpc": network.vpc,
        "vpc_subnets": network.subnets,
        "security_groups": [group],
        "credentials": rds.Credentials.from_username(MASTER),
        "manage_master_user_password": True,
        "iam_authentication": True,
        "storage_encrypted": True,
        "copy_tags_to_snapshot": True,
        "deletion_protection": settings.deletion_protection,
        "preferred_maintenance_window": maintenance_window(settings.maintenance_start),
        "port": PORT,
        "cloudwatch_logs_exports": ["postgresql"],
        "cloudwatch_logs_retention": retention(config.log_retention_days),
        "removal_policy": _removal(config),
    }


def _machine() -> dict[str, Any]:
    """Return the properties that an RDS instance and an instance of a cluster have in common."""
    return {
        "ca_certificate": rds.CaCertificate.RDS_CA_RSA2048_G1,
        # Aurora upgrades a cluster only if all its instances have it on.
        "auto_minor_version_upgrade": True,
        "publicly_accessible": False,
        "enable_performance_insights": True,
    }


def _instance(
    scope: Construct, config: Config, group: ec2.SecurityGroup, shared: dict[str, Any]
) -> Server:
    settings = config.database
    engine = instance_engine(config)
    instance = rds.DatabaseInstance(
        scope,
        "Instance",
        engine=engine,
        instance_type=ec2.InstanceType(settings.instance_class),
        database_name=settings.name,
        parameter_group=_parameters(scope, config, engine),
        multi_az=settings.multi_az,
        allocated_storage=settings.storage_gib,
        max_allocated_storage=settings.max_storage_gib,
        storage_type=rds.StorageType.GP3,
        backup_retention=Duration.days(settings.backup_days),
        preferred_backup_window=backup_window(settings.maintenance_start),
        delete_automated_backups=not config.termination_protection,
        database_insights_mode=rds.DatabaseInsightsMode.STANDARD,
        **_machine(),
        **shared,
    )
    _suppress_findings(instance, config)
    _narrow_log_retention(instance, config, "instance")
    return Server(
        host=instance.db_instance_endpoint_address,
        port=instance.db_instance_endpoint_port,
        rule_port=PORT,
        group_id=group.security_group_id,
        owner_secret_arn=_arn(instance.secret),
        identifier=instance.instance_identifier,
        resource_id=instance.instance_resource_id or "",
        cluster=False,
    )


def _cluster(
    scope: Construct, config: Config, group: ec2.SecurityGroup, shared: dict[str, Any]
) -> Server:
    settings = config.database
    engine = cluster_engine(config)
    machine = {**_machine(), "preferred_maintenance_window": shared["preferred_maintenance_window"]}
    reader = rds.ClusterInstance.serverless_v2("Reader", scale_with_writer=True, **machine)
    cluster = rds.DatabaseCluster(
        scope,
        "Cluster",
        engine=engine,
        writer=rds.ClusterInstance.serverless_v2("Writer", **machine),
        readers=[reader] if settings.multi_az else [],
        serverless_v2_min_capacity=settings.min_acu,
        serverless_v2_max_capacity=settings.max_acu,
        default_database_name=settings.name,
        parameter_group=_parameters(scope, config, engine),
        backup=rds.BackupProps(
            retention=Duration.days(settings.backup_days),
            preferred_window=backup_window(settings.maintenance_start),
        ),
        **shared,
    )
    _suppress_findings(cluster, config)
    suppress_by_id(
        cluster,
        "CloudFormation-Validate::E9006",
        "The CDK's list of Aurora's versions ends before 17.11; preflight asks RDS itself.",
    )
    _narrow_log_retention(cluster, config, "cluster")
    return Server(
        host=cluster.cluster_endpoint.hostname,
        port=str(PORT),
        rule_port=PORT,
        group_id=group.security_group_id,
        owner_secret_arn=_arn(cluster.secret),
        identifier=cluster.cluster_identifier,
        resource_id=cluster.cluster_resource_identifier,
        cluster=True,
    )


def _existing(config: Config) -> Server:
    existing = config.database.existing
    return Server(
        host=str(existing.host),
        port=str(existing.port),
        rule_port=existing.port,
        group_id=str(existing.security_group_id),
        owner_secret_arn=str(existing.secret_arn),
        identifier=existing.identifier or "",
        resource_id=existing.resource_id or "",
        cluster=existing.cluster,
    )


def _parameters(scope: Construct, config: Config, engine: rds.IEngine) -> rds.ParameterGroup:
    most = config.database.max_connections
    return rds.ParameterGroup(
        scope,
        "Parameters",
        engine=engine,
        description="lambda-pg: TLS only, and a number of connections that makes the budget exact",
        parameters={
            **({} if most is None else {"max_connections": str(most)}),
            "rds.force_ssl": "1",
            **LOG_PARAMETERS,
        },
    )


def instance_engine(config: Config) -> rds.IInstanceEngine:
    """Name the engine of an RDS instance."""
    version = rds.PostgresEngineVersion.of(*_version(config))
    return rds.DatabaseInstanceEngine.postgres(version=version)


def cluster_engine(config: Config) -> rds.IClusterEngine:
    """Name the engine of an Aurora cluster."""
    version = rds.AuroraPostgresEngineVersion.of(*_version(config))
    return rds.DatabaseClusterEngine.aurora_postgres(version=version)


def _version(config: Config) -> tuple[str, str]:
    major, minor = config.database.major_version, config.database.minor_version
    return f"{major}.{minor}", str(major)


def _arn(secret: secretsmanager.ISecret | None) -> str:
    assert secret is not None  # noqa: S101 - RDS manages one, as asked for
    return secret.secret_arn


def _removal(config: Config) -> RemovalPolicy:
    return RemovalPolicy.SNAPSHOT if config.termination_protection else RemovalPolicy.DESTROY


def _suppress_findings(server: Construct, config: Config) -> None:
    settings = config.database
    keeper = Stack.of(server).node.find_child(LOG_RETENTION)
    suppress_permission(
        keeper,
        aws_policy("AWSLambdaBasicExecutionRole"),
        "CDK creates this function, with AWS's managed policy for writing logs.",
    )
    port = "The port is no secret: security groups decide who may reach it."
    suppress(server, RDS11=port)
    if not settings.multi_az:
        suppress(server, RDS3="This stage has database.multi_az off: it may be down.")
    if not settings.deletion_protection:
        reason = "This stage has database.deletion_protection off: it is made to be removed."
        suppress(server, RDS10=reason)
    if settings.backup_days == 0:
        suppress(server, RDS13="This stage has database.backup_days 0: it holds nothing.")


def _narrow_log_retention(server: Construct, config: Config, kind: str) -> None:
    """Let CDK's function set the retention of two log groups only; CDK lets it do so for all.

    The groups are the server's, which RDS creates and names, and the function's own. This stack
    cannot create the server's group: it would have to exist before RDS creates it, and its name
    contains the server's name: docs/decisions/0039
    """
    resource = cast(CfnElement, server.node.default_child)
    keeper = Stack.of(server).node.find_child(LOG_RETENTION)
    policy = keeper.node.find_child("ServiceRole").node.find_child("DefaultPolicy")
    arn = f"arn:aws:logs:{config.region}:{{}}:log-group:{{}}:*"
    logs = f"/aws/rds/{kind}/{{}}/postgresql"
    arns = [
        arn.format(Aws.ACCOUNT_ID, logs.format(Fn.ref(resource.logical_id))),
        arn.format(Aws.ACCOUNT_ID, OWN_LOGS),
    ]
    cast(iam.CfnPolicy, policy.node.default_child).policy_document = iam.PolicyDocument(
        statements=[iam.PolicyStatement(actions=["logs:PutRetentionPolicy"], resources=arns)]
    )
    name = Stack.of(server).get_logical_id(resource)
    streams = "The group's ARN for a policy ends so; RDS names the group."
    suppress_permission(
        keeper, "Resource::" + arn.format("<AWS::AccountId>", logs.format(f"<{name}>")), streams
    )
    own = "CloudFormation names CDK's own function, and so its group, only when it makes it."
    suppress_permission(keeper, "Resource::" + arn.format("<AWS::AccountId>", OWN_LOGS), own)
