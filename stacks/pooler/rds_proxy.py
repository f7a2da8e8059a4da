"""Amazon RDS Proxy in front of the database."""

from typing import Any, cast

from aws_cdk import Arn, ArnComponents, ArnFormat, CfnResource, Duration, Fn, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_rds as rds
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from lambda_pg_cdk.stacks.assets import Assets
from lambda_pg_cdk.stacks.database import (
    ADMIT,
    APPLICATION,
    APPLICATION_SECRET,
    ROTATION_SECONDS,
    DatabaseStack,
    token_user_arn,
)
from lambda_pg_cdk.stacks.functions import may_read
from lambda_pg_cdk.stacks.migration import DeploymentTask
from lambda_pg_cdk.stacks.network import NetworkStack, closed_group
from lambda_pg_cdk.stacks.published import published
from lambda_pg_cdk.stacks.servers import cluster_engine, instance_engine
from lambda_pg_cdk.stacks.sql_logins import secret_of, token_of, user_of
from lambda_pg_cdk.stage.config import Config


class RdsProxyStack(Stack):
    """The proxy; what others need is published.

    With `rds_proxy.auth` 'iam' there is no secret: functions log in at the proxy with their tokens,
    and the proxy logs in at the database with its token.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,  # noqa: A002 - CDK's own name
        *,
        config: Config,
        assets: Assets,
        network: NetworkStack,
        database: DatabaseStack,
        **options: Any,
    ) -> None:
        super().__init__(scope, id, **options)
        self._config, self._database = config, database
        self._group = closed_group(self, "Group", network.vpc, "RDS Proxy")
        database.admit(self._group)
        self.proxy = self._proxy(network)
        if not config.by_token:
            self._create_logins(assets)
        self._publish()

    def _proxy(self, network: NetworkStack) -> rds.DatabaseProxy:
        config, settings = self._config, self._config.rds_proxy
        secrets = self._secrets()
        role = iam.Role(self, "Role", assumed_by=iam.ServicePrincipal("rds.amazonaws.com"))
        for statement in [may_read(each.secret_arn) for each in secrets] or [self._log_in()]:
            role.add_to_policy(statement)
        proxy = rds.DatabaseProxy(
            self,
            "Proxy",
            # RDS stores the name in lower case, and Ref returns it as it was sent: metrics would be
            # looked for under a name that does not exist. https://github.com/aws/aws-cdk/issues/38270
            db_proxy_name=config.proxy_name,
            proxy_target=self._target(),
            vpc=network.vpc,
            vpc_subnets=network.subnets,
            security_groups=[self._group],
            # Without CDK's own grant, which allows DescribeSecret too; the proxy only reads:
            # https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/rds-proxy-iam-setup.html
            role=role.without_policy_updates(),
            secrets=secrets,
            default_auth_scheme=rds.DefaultAuthScheme.NONE
            if secrets
            else rds.DefaultAuthScheme.IAM_AUTH,
            iam_auth=config.by_token,
            require_tls=True,
            borrow_timeout=Duration.seconds(settings.borrow_timeout),
            idle_client_timeout=Duration.seconds(settings.idle_client_timeout),
            max_connections_percent=settings.max_connections_percent,
            max_idle_connections_percent=settings.max_idle_percent,
        )
        proxy.node.add_dependency(role)
        if not secrets:
            # CDK writes an empty list, of which CloudFormation wants one entry or nothing at all.
            cast(CfnResource, proxy.node.default_child).add_property_deletion_override("Auth")
        return proxy

    def _secrets(self) -> list[secretsmanager.ISecret]:
        """Describe the secrets of the application and of `/sql`'s roles, where there are any."""
        if self._config.by_token:
            return []
        values = {"ApplicationSecret": APPLICATION_SECRET}
        values |= {f"Sql{role.title()}": secret_of(role) for role in self._sql_roles}
        return [
            secretsmanager.Secret.from_secret_complete_arn(
                self, name, published(self._config, value).read(self)
            )
            for name, value in values.items()
        ]

    @property
    def _sql_roles(self) -> tuple[str, ...]:
        return self._config.sql.roles if self._config.sql.enabled else ()

    def _create_logins(self, assets: Assets) -> None:
        """Make the login of each secret before the proxy, which may try any of them."""
        self._create_login(assets, "Login", APPLICATION_SECRET)
        for role in self._sql_roles:
            self._create_login(assets, f"Sql{role.title()}Login", secret_of(role))

    def _create_login(self, assets: Assets, name: str, secret: str) -> None:
        """Make the login before the proxy, whose target may wait for it: docs/decisions/0035.

        The migration makes it, too, but only after the proxy, in the stack `Api`.
        """
        rotate = published(self._config, "database/rotation-function").read(self)
        function = Arn.format(
            ArnComponents(
                service="lambda",
                resource="function",
                resource_name=rotate,
                arn_format=ArnFormat.COLON_RESOURCE_NAME,
            ),
            self,
        )
        # A new server must have the login before the proxy connects to it.
        server = ["host", *(["resource-id"] if self._database.server.resource_id else [])]
        DeploymentTask(
            self,
            name,
            config=self._config,
            assets=assets,
            resource_type="Custom::Login",
            invokes=function,
            properties={
                "Task": "login",
                "Function": function,
                "Event": {
                    "Step": ADMIT,
                    "SecretId": published(self._config, secret).read(self),
                },
                "Seconds": ROTATION_SECONDS,
                "Logs": f"of the function {rotate}",
                "Server": [
                    published(self._config, f"database/{each}").read(self) for each in server
                ],
            },
            before=[self.proxy],
        )

    def _target(self) -> rds.ProxyTarget:
        """Describe the database: with its construct, CDK would add rules to the database's stack.

        Its name is a published value, so that a replaced database does not block this stack.
        """
        config, identifier = self._config, published(self._config, "database/identifier").read(self)
        if self._database.server.cluster:
            cluster = rds.DatabaseCluster.from_database_cluster_attributes(
                self,
                "Cluster",
                cluster_identifier=identifier,
                port=self._database.server.rule_port,
                security_groups=[],
                engine=cluster_engine(config),
            )
            return rds.ProxyTarget.from_cluster(cluster)
        instance = rds.DatabaseInstance.from_database_instance_attributes(
            self,
            "Instance",
            instance_identifier=identifier,
            instance_endpoint_address=f"database.{config.zone}",
            port=self._database.server.rule_port,
            security_groups=[],
            engine=instance_engine(config),
        )
        return rds.ProxyTarget.from_instance(instance)

    def _log_in(self) -> iam.PolicyStatement:
        """Let the proxy log in at the database as the application and as `/sql`'s users."""
        identifier = published(self._config, "database/resource-id").read(self)
        users = [APPLICATION, *(user_of(role) for role in self._sql_roles)]
        arns = [token_user_arn(self, identifier, user) for user in users]
        return iam.PolicyStatement(actions=["rds-db:connect"], resources=arns)

    def _publish(self) -> None:
        values = {
            "pooler/host": self.proxy.endpoint,
            "pooler/port": str(self._config.pooler_port),
            "pooler/profile": "rds-proxy",
            "pooler/security-group": self._group.security_group_id,
            "pooler/proxy": self.proxy.db_proxy_name,
        }
        if self._config.by_token:
            # arn:aws:rds:region:account:db-proxy:prx-0123
            identifier = Fn.select(6, Fn.split(":", self.proxy.db_proxy_arn))
            values["pooler/user"] = APPLICATION
            values["pooler/connect-arn"] = token_user_arn(self, identifier, APPLICATION)
            for role in self._sql_roles:
                values[token_of(role)] = token_user_arn(self, identifier, user_of(role))
        else:
            values["pooler/secret-arn"] = published(self._config, APPLICATION_SECRET).read(self)
        for name, value in values.items():
            published(self._config, name).write(self, value)
