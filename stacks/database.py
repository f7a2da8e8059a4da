"""RDS for PostgreSQL, its users' secrets, and its address for the other stacks."""

from typing import Any

from aws_cdk import Duration, RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_rds as rds
from aws_cdk import aws_route53 as route53
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from stacks import published
from stacks.acknowledged import accept
from stacks.config import Config
from stacks.network import NetworkStack

PORT = 5432
MASTER = "lambda_pg_owner"
APPLICATION = "lambda_pg_user"
NO_QUOTING = " %+~`#$&*()|[]{}:;<>?!'/@\"\\,=^-"
"""Characters left out of passwords, so that none needs quoting anywhere they are written."""


class DatabaseStack(Stack):
    """The instance and two secrets. Faces: `connections`, `master_secret`, `application_secret`."""

    def __init__(
        self,
        scope: Construct,
        id: str,  # noqa: A002 - CDK's own name
        *,
        config: Config,
        network: NetworkStack,
        **options: Any,
    ) -> None:
        super().__init__(scope, id, **options)
        self._config, settings = config, config.database
        self.security_group = ec2.SecurityGroup(
            self,
            "SecurityGroup",
            vpc=network.vpc,
            description="PostgreSQL: pooler and migration only",
            allow_all_outbound=False,
        )
        self.application_secret = self._secret("ApplicationSecret", APPLICATION)
        self.master_secret = self._secret("MasterSecret", MASTER)
        self.instance = rds.DatabaseInstance(
            self,
            "Instance",
            engine=_engine(config),
            instance_type=ec2.InstanceType(settings.instance_class),
            vpc=network.vpc,
            vpc_subnets=network.subnets,
            security_groups=[self.security_group],
            credentials=rds.Credentials.from_secret(self.master_secret, MASTER),
            database_name=settings.name,
            parameter_group=self._parameters(config),
            multi_az=settings.multi_az,
            allocated_storage=settings.storage_gib,
            max_allocated_storage=settings.max_storage_gib,
            storage_type=rds.StorageType.GP3,
            storage_encrypted=True,
            ca_certificate=rds.CaCertificate.RDS_CA_RSA2048_G1,
            backup_retention=Duration.days(settings.backup_days),
            copy_tags_to_snapshot=True,
            delete_automated_backups=not config.termination_protection,
            deletion_protection=settings.deletion_protection,
            auto_minor_version_upgrade=False,
            port=PORT,
            publicly_accessible=False,
            enable_performance_insights=True,
            cloudwatch_logs_exports=["postgresql"],
            removal_policy=_removal(config),
        )
        # The instance's own default port is its endpoint's, and would travel by an export.
        self.connections = ec2.Connections(
            security_groups=[self.security_group], default_port=ec2.Port.tcp(PORT)
        )
        # For people and tools: RDS's certificate does not carry this name, so it takes verify-ca.
        route53.CnameRecord(
            self,
            "Name",
            zone=network.zone,
            record_name="database",
            domain_name=self.instance.db_instance_endpoint_address,
            ttl=Duration.seconds(30),
        )
        self._accept_findings(config)
        published.database_host(config.stage).write(
            self, self.instance.db_instance_endpoint_address
        )
        published.database_port(config.stage).write(self, self.instance.db_instance_endpoint_port)

    def attach(self, function: lambda_.Function, secret: secretsmanager.ISecret) -> None:
        """Give a function the direct way to the database, as the user of `secret`."""
        function.connections.allow_to_default_port(self.connections, "to PostgreSQL")
        secret.grant_read(function)
        scope, config = Stack.of(function), self._config
        environment = {
            "PGHOST": published.database_host(config.stage).read(scope),
            "PGPORT": published.database_port(config.stage).read(scope),
            "PGDATABASE": config.database.name,
            "PGSSLMODE": "verify-full",
            "LAMBDA_PG_PROFILE": "direct",
            "LAMBDA_PG_SECRET_ARN": secret.secret_arn,
        }
        if config.database.ca_file:
            environment["PGSSLROOTCERT"] = config.database.ca_file
        for name, value in environment.items():
            function.add_environment(name, value)

    def _accept_findings(self, config: Config) -> None:
        port = "The port is no secret: security groups decide who may reach it."
        accept(self.instance, RDS11=port)
        for secret in (self.application_secret, self.master_secret):
            accept(secret, SMG4="Nothing rotates it yet; pooler and layer follow a change.")
        settings = config.database
        if not settings.multi_az:
            accept(self.instance, RDS3="This stage has database.multi_az off: it may be down.")
        if not settings.deletion_protection:
            reason = "This stage has database.deletion_protection off: it is made to be removed."
            accept(self.instance, RDS10=reason)
        if settings.backup_days == 0:
            accept(self.instance, RDS13="This stage has database.backup_days 0: it holds nothing.")

    def _secret(self, name: str, user: str) -> secretsmanager.Secret:
        return secretsmanager.Secret(
            self,
            name,
            description=f"Name and password of {user}",
            generate_secret_string=secretsmanager.SecretStringGenerator(
                secret_string_template=self.to_json_string({"username": user}),
                generate_string_key="password",
                password_length=40,
                exclude_characters=NO_QUOTING,
            ),
        )

    def _parameters(self, config: Config) -> rds.ParameterGroup:
        return rds.ParameterGroup(
            self,
            "Parameters",
            engine=_engine(config),
            description="lambda-pg: an explicit number of connections makes the budget exact",
            parameters={
                "max_connections": str(config.database.max_connections),
                "rds.force_ssl": "1",
                "log_lock_waits": "1",
                "log_min_duration_statement": "1000",
            },
        )


def _engine(config: Config) -> rds.IInstanceEngine:
    major, minor = config.database.major_version, config.database.minor_version
    version = rds.PostgresEngineVersion.of(f"{major}.{minor}", str(major))
    return rds.DatabaseInstanceEngine.postgres(version=version)


def _removal(config: Config) -> RemovalPolicy:
    return RemovalPolicy.SNAPSHOT if config.termination_protection else RemovalPolicy.DESTROY
