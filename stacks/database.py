"""The database, the application's secret and its rotation, and direct access to the server."""

from typing import Any

from aws_cdk import Arn, ArnComponents, ArnFormat, Duration, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as events_targets
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_route53 as route53
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct, IConstruct

from lambda_pg_cdk.stacks.assets import Assets
from lambda_pg_cdk.stacks.functions import (
    add_layer,
    add_variables,
    join_network,
    new_function,
    read_secret,
)
from lambda_pg_cdk.stacks.nag_exceptions import (
    suppress,
    suppress_permission,
    suppress_serverless,
    suppress_zones,
)
from lambda_pg_cdk.stacks.network import NetworkStack, let_in
from lambda_pg_cdk.stacks.published import published
from lambda_pg_cdk.stacks.servers import new_server
from lambda_pg_cdk.stacks.sql_logins import secret_of
from lambda_pg_cdk.stacks.sql_secrets import add_secrets, login_secret, report_rotations
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.environment import environment
from lambda_pg_cdk.stage.sources import OPERATIONS

APPLICATION = "lambda_pg_user"

ROTATION_SECONDS = 60
ADMIT = "admitCurrent"
"""The step of `rotate` that creates the application's login before there is a migration."""
REPORT = "reportSchedule"
"""The step of `rotate` that reports whether the secret is rotated."""
ROTATION_OFF = "RotationOff"
REPORT_HOURS = 1
"""The metric that it writes, with the dimension Secret, and its interval."""

SERVER = "PostgreSQL"
OWNER = "database/owner-secret-arn"
APPLICATION_SECRET = "database/application-secret-arn"  # noqa: S105 - a name


def token_user_arn(stack: Stack, server: str, user: str) -> str:
    """Return the ARN for `rds-db:connect`: a user of a server, by the server's resource id."""
    return Arn.format(
        ArnComponents(
            service="rds-db",
            resource="dbuser",
            resource_name=f"{server}/{user}",
            arn_format=ArnFormat.COLON_RESOURCE_NAME,
        ),
        stack,
    )


def hash_for_proxy(function: lambda_.Function, config: Config) -> None:
    """Make a function hash the application's password 4,096 times for RDS Proxy.

    The layer and PgBouncer accept one round. AWS does not document what the proxy accepts, and some
    clients reject fewer rounds than RFC 7677 requires: https://github.com/ongres/scram/issues/20
    """
    if config.pooler == "rds-proxy":
        function.add_environment("MANY_ROUNDS", "1")


class DatabaseStack(Stack):
    """Public: `attach`, `admit`, `server`. Others are published: an export in use cannot change."""

    def __init__(
        self,
        scope: Construct,
        id: str,  # noqa: A002 - CDK's own name
        *,
        config: Config,
        assets: Assets,
        network: NetworkStack,
        **options: Any,
    ) -> None:
        super().__init__(scope, id, **options)
        self._config = config
        self.server = new_server(self, config, network)
        self._values = {
            "database/host": self.server.host,
            "database/port": self.server.port,
            "database/name": config.database.name,
            "database/security-group": self.server.group_id,
            "database/owner-secret-arn": self.server.owner_secret_arn,
            "database/identifier": self.server.identifier,
            "database/resource-id": self.server.resource_id,
        }
        if not config.by_token:
            self._add_login(assets)
        if config.network.bastion:
            self._add_bastion(network)
        # For people and tools. RDS's certificate does not have this name: use sslmode=verify-ca.
        route53.CnameRecord(
            self,
            "Name",
            zone=network.zone,
            record_name="database",
            domain_name=self.server.host,
            ttl=Duration.seconds(30),
        )
        for name, value in self._values.items():
            if value:
                published(config, name).write(self, value)

    def attach(self, function: lambda_.Function, secret: str = OWNER) -> None:
        """Give a function direct access to the database, as the user of a published secret."""
        self.admit(join_network(function, self._config, endpoints_only=True))
        arn = self._value(function, secret)
        read_secret(function, arn, self._config.owner_key_arn if secret == OWNER else None)
        variables = environment(
            application=function.node.id,
            checkout_timeout=self._config.functions.checkout_timeout,
            host=self._value(function, "database/host"),
            port=self._value(function, "database/port"),
            database=self._config.database.name,
            profile="direct",
            secret_arn=arn,
            ca_file=self._config.database.ca_file,
        )
        add_variables(function, variables)

    def admit(self, group: ec2.SecurityGroup) -> None:
        """Let a security group of any stack reach the server."""
        let_in(group, self._value(group, "database/security-group"), self.server.rule_port, SERVER)

    def _value(self, reader: IConstruct, name: str) -> str:
        """Return a value of this stack: directly in this stack, elsewhere as published."""
        stack = Stack.of(reader)
        return self._values[name] if stack is self else published(self._config, name).read(stack)

    def _add_bastion(self, network: NetworkStack) -> None:
        """Add a small instance that is reached by Session Manager only, which logs each session."""
        group = ec2.SecurityGroup(
            self, "BastionGroup", vpc=network.vpc, description="Bastion", allow_all_outbound=False
        )
        group.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(443), "to Session Manager")
        let_in(group, self.server.group_id, self.server.rule_port, SERVER)
        bastion = ec2.Instance(
            self,
            "Bastion",
            vpc=network.vpc,
            vpc_subnets=network.subnets,
            security_group=group,
            instance_type=ec2.InstanceType("t4g.nano"),
            machine_image=ec2.MachineImage.latest_amazon_linux2023(
                cpu_type=ec2.AmazonLinuxCpuType.ARM_64
            ),
            block_devices=[
                ec2.BlockDevice(
                    device_name="/dev/xvda", volume=ec2.BlockDeviceVolume.ebs(8, encrypted=True)
                )
            ],
            require_imdsv2=True,
            ssm_session_permissions=True,
        )
        suppress_zones(bastion)
        suppress(
            bastion,
            EC28="The bastion only forwards a tunnel: it needs no detailed monitoring.",
            EC29="It holds nothing, and a new one takes its place.",
        )
        suppress_permission(
            bastion,
            "Policy::arn:<AWS::Partition>:iam::aws:policy/AmazonSSMManagedInstanceCore",
            "AWS's own policy for instances that Session Manager reaches.",
        )
        published(self._config, "network/bastion").write(self, bastion.instance_id)

    def _add_login(self, assets: Assets) -> None:
        description = "Name and password that functions log in with"
        secret = login_secret(self, "ApplicationSecret", APPLICATION, description)
        function = self._rotate(secret, assets)
        self._values["database/application-secret-arn"] = secret.secret_arn
        self._values["database/rotation-function"] = function.function_name
        if self._config.sql.enabled:
            self._add_sql_logins(function)

    def _add_sql_logins(self, rotate: lambda_.Function) -> None:
        secrets = add_secrets(self, self._config, rotate)
        report_rotations(self, rotate, secrets, step=REPORT, every=Duration.hours(REPORT_HOURS))
        for role, secret in secrets.items():
            self._values[secret_of(role)] = secret.secret_arn

    def _rotate(self, secret: secretsmanager.Secret, assets: Assets) -> lambda_.Function:
        """Rotate with this project's function, which uses the direct URL and verifies TLS."""
        config = self._config
        function = new_function(
            self,
            OPERATIONS / "rotate",
            config=config,
            assets=assets,
            timeout=ROTATION_SECONDS,
            invoked="Secrets Manager runs a failed rotation again; its failure raises an alarm.",
            extra=("lambda_pg_cdk/migrations",),
        )
        add_layer(function, config)
        self.attach(function)
        function.add_environment("ROTATION", config.database.rotation)
        hash_for_proxy(function, config)
        suppress_permission(
            function, "Resource::*", "X-Ray's and GetRandomPassword's permissions know no resource."
        )
        # This lets the function read, write and promote versions of the secret, and nothing else.
        secret.add_rotation_schedule(
            "Rotation",
            rotation_lambda=function,
            automatically_after=Duration.days(config.database.rotation_days),
            # The first migration creates the users, after this.
            rotate_immediately_on_update=False,
        )
        self._report_rotation(function, secret)
        # CDK lets Secrets Manager invoke it for any secret. With the ARN, for this secret alone:
        # https://docs.aws.amazon.com/secretsmanager/latest/userguide/rotating-secrets-required-permissions-function.html
        for child in function.node.find_all():
            if isinstance(child, lambda_.CfnPermission):
                child.source_account = self.account
                child.source_arn = secret.secret_arn
        return function

    def _report_rotation(self, function: lambda_.Function, secret: secretsmanager.Secret) -> None:
        """Have the function report regularly whether the secret is rotated."""
        rule = events.Rule(
            self,
            "RotationReport",
            description="Report whether the application's secret is rotated",
            schedule=events.Schedule.rate(Duration.hours(REPORT_HOURS)),
            targets=[
                events_targets.LambdaFunction(
                    function,
                    event=events.RuleTargetInput.from_object(
                        {"Step": REPORT, "SecretId": secret.secret_arn}
                    ),
                    retry_attempts=2,
                )
            ],
        )
        suppress_serverless(rule, EventBusDLQ="An event that is lost comes again in an hour.")
