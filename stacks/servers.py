"""Three ways to have a server: an RDS instance, an Aurora cluster, or one that exists."""

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
"""Name of CDK's own function for log groups that AWS makes; one in a stack."""
OWN_LOGS = "/aws/lambda/*-LogRetention*"
"""Log group of that function, whose name CloudFormation makes: the stack's, the function's and
something random, cut to 64 characters."""


@dataclass(frozen=True)
class Server:
    """What the rest of the app has to know of the server, whichever it is."""

    host: str
    port: str
    rule_port: int
    """The same port, as security groups want it."""
    group_id: str
    """Security group that lets clients in."""
    owner_secret_arn: str
    """Name and password of the owner of the database."""
    identifier: str
    """Of the instance or the cluster; '' where it is not known."""
    resource_id: str
    """What `rds-db:connect` names; '' where it is not known."""
    cluster: bool
    """Whether it is a cluster that has these."""


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
    make = _cluster if config.database.kind == "aurora" else _instance
    return make(scope, config, network, group)


def _instance(
    scope: Construct, config: Config, network: NetworkStack, group: ec2.SecurityGroup
) -> Server:
    settings = config.database
    engine = instance_engine(config)
    instance = rds.DatabaseInstance(
        scope,
        "Instance",
        engine=engine,
        instance_type=ec2.InstanceType(settings.instance_class),
        vpc=network.vpc,
        vpc_subnets=network.subnets,
        security_groups=[group],
        credentials=rds.Credentials.from_username(MASTER),
        manage_master_user_password=True,
        iam_authentication=True,
        database_name=settings.name,
        parameter_group=_parameters(scope, config, engine),
        multi_az=settings.multi_az,
        allocated_storage=settings.storage_gib,
        max_allocated_storage=settings.max_storage_gib,
        storage_type=rds.StorageType.GP3,
        storage_encrypted=True,
        ca_certificate=rds.CaCertificate.RDS_CA_RSA2048_G1,
        backup_retention=Duration.days(settings.backup_days),
        preferred_backup_window=backup_window(settings.maintenance_start),
        copy_tags_to_snapshot=True,
        delete_automated_backups=not config.termination_protection,
        deletion_protection=settings.deletion_protection,
        auto_minor_version_upgrade=True,
        preferred_maintenance_window=maintenance_window(settings.maintenance_start),
        port=PORT,
        publicly_accessible=False,
        database_insights_mode=rds.DatabaseInsightsMode.STANDARD,
        enable_performance_insights=True,
        cloudwatch_logs_exports=["postgresql"],
        cloudwatch_logs_retention=retention(config.log_retention_days),
        removal_policy=_removal(config),
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
    scope: Construct, config: Config, network: NetworkStack, group: ec2.SecurityGroup
) -> Server:
    settings = config.database
    engine = cluster_engine(config)
    window = maintenance_window(settings.maintenance_start)
    common: dict[str, Any] = {
        "ca_certificate": rds.CaCertificate.RDS_CA_RSA2048_G1,
        # Aurora upgrades a cluster when all its instances have it on.
        "auto_minor_version_upgrade": True,
        "preferred_maintenance_window": window,
        "publicly_accessible": False,
        "enable_performance_insights": True,
    }
    reader = rds.ClusterInstance.serverless_v2("Reader", scale_with_writer=True, **common)
    cluster = rds.DatabaseCluster(
        scope,
        "Cluster",
        engine=engine,
        writer=rds.ClusterInstance.serverless_v2("Writer", **common),
        readers=[reader] if settings.multi_az else [],
        serverless_v2_min_capacity=settings.min_acu,
        serverless_v2_max_capacity=settings.max_acu,
        vpc=network.vpc,
        vpc_subnets=network.subnets,
        security_groups=[group],
        credentials=rds.Credentials.from_username(MASTER),
        manage_master_user_password=True,
        iam_authentication=True,
        default_database_name=settings.name,
        parameter_group=_parameters(scope, config, engine),
        storage_encrypted=True,
        backup=rds.BackupProps(
            retention=Duration.days(settings.backup_days),
            preferred_window=backup_window(settings.maintenance_start),
        ),
        preferred_maintenance_window=window,
        copy_tags_to_snapshot=True,
        deletion_protection=settings.deletion_protection,
        port=PORT,
        cloudwatch_logs_exports=["postgresql"],
        cloudwatch_logs_retention=retention(config.log_retention_days),
        removal_policy=_removal(config),
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
        "AWS's own policy for writing logs, of CDK's own function.",
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
    """Let CDK's function set how long two log groups are kept; by CDK it may do so for all.

    The groups are the server's, which RDS makes and names, and the function's own. A group of this
    stack would have to be there before RDS makes it, and only the server's name says what it is
    called: docs/decisions/0039
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
