"""The layer, the functions, the migration and the HTTP API in front of them."""

import json
from typing import Any

import jsii
from aws_cdk import CfnOutput, Duration, Stack, triggers
from aws_cdk import aws_apigateway as apigateway
from aws_cdk import aws_apigatewayv2 as api
from aws_cdk import aws_apigatewayv2_integrations as integrations
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from constructs import Construct

from stacks.acknowledged import accept
from stacks.assets import Assets
from stacks.config import API_TIMEOUT, Config
from stacks.database import DatabaseStack
from stacks.functions import log_group, new_function
from stacks.identity import Identity
from stacks.network import NetworkStack
from stacks.pooler import Pooler

USERS = ["/users", "/users/{id}"]
HEALTH = ["/health"]
BASELINE = ["/baseline/users/{id}"]


class ApiStack(Stack):
    """Everything that answers requests. Output: `ApiUrl`."""

    def __init__(
        self,
        scope: Construct,
        id: str,  # noqa: A002 - CDK's own name
        *,
        config: Config,
        assets: Assets,
        network: NetworkStack,
        database: DatabaseStack,
        pooler: Pooler,
        **options: Any,
    ) -> None:
        super().__init__(scope, id, **options)
        self._config, self._assets, self._network = config, assets, network
        self.layer = lambda_.LayerVersion(
            self,
            "Layer",
            code=assets.layer(),
            compatible_runtimes=[assets.runtime],
            compatible_architectures=[assets.architecture],
            description="lambda_pg: PostgreSQL connections that do not run out",
        )
        users = self._pooled("users", pooler, concurrency=config.functions.reserved_concurrency)
        health = self._pooled("health", pooler)
        self.functions = [users, health]
        self._migrate(database, before=[users, health])
        self.api = api.HttpApi(
            self, "Http", create_default_stage=False, description=self.stack_name
        )
        authorizer = Identity(self, "Identity", config=config).authorizer
        self._route("users", users, USERS, authorizer)
        self._route("health", health, HEALTH, None)
        if config.baseline:
            self._route("baseline", self._baseline(database), BASELINE, authorizer)
        self.stage = self._stage()
        CfnOutput(self, "ApiUrl", value=self.stage.url, description="Address of the HTTP API")

    def _pooled(
        self, folder: str, pooler: Pooler, concurrency: int | None = None
    ) -> lambda_.Function:
        function = self._in_network(
            folder, self._config.functions.timeout, reserved_concurrent_executions=concurrency
        )
        pooler.attach(function)
        return function

    def _baseline(self, database: DatabaseStack) -> lambda_.Function:
        """Add the control of the storm; it knows no layer, so libpq is told where the roots are."""
        function = self._in_network("baseline", self._config.functions.timeout)
        database.attach(function, database.application_secret)
        if self._config.database.ca_file is None:
            function.add_environment("PGSSLROOTCERT", "/opt/python/lambda_pg/certs/aws.pem")
        return function

    def _in_network(self, folder: str, timeout: int, **options: Any) -> lambda_.Function:
        group = ec2.SecurityGroup(
            self,
            f"{folder.title()}Group",
            vpc=self._network.vpc,
            description=f"Function {folder}",
            allow_all_outbound=False,
        )
        group.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(443), "to the AWS APIs")
        function = new_function(
            self,
            folder,
            config=self._config,
            assets=self._assets,
            timeout=timeout,
            layers=[self.layer],
            vpc=self._network.vpc,
            vpc_subnets=self._network.subnets,
            security_groups=[group],
            **options,
        )
        function.add_environment("PGAPPNAME", folder)
        checkout = self._config.functions.checkout_timeout
        function.add_environment("LAMBDA_PG_CHECKOUT_TIMEOUT", str(checkout))
        return function

    def _migrate(self, database: DatabaseStack, before: list[lambda_.Function]) -> None:
        """Run the migration before the functions get their new code; its failure rolls back."""
        settings = self._config.database
        timeout = self._config.functions.migration_timeout
        function = self._in_network("migrate", timeout, extra=("migrations",))
        database.attach(function, database.master_secret)
        database.application_secret.grant_read(function)
        for name, value in {
            "APP_SECRET_ARN": database.application_secret.secret_arn,
            "STATEMENT_TIMEOUT": settings.statement_timeout,
            "LOCK_TIMEOUT": settings.lock_timeout,
            "IDLE_IN_TRANSACTION_TIMEOUT": settings.idle_in_transaction_timeout,
        }.items():
            function.add_environment(name, str(value))
        triggers.Trigger(
            self,
            "Migration",
            handler=function,
            timeout=Duration.seconds(timeout),
            invocation_type=triggers.InvocationType.REQUEST_RESPONSE,
            execute_before=list(before),
        )

    def _route(
        self,
        name: str,
        function: lambda_.Function,
        paths: list[str],
        authorizer: api.IHttpRouteAuthorizer | None,
    ) -> None:
        """Send every method to the function, which answers 405 itself where it must."""
        integration = integrations.HttpLambdaIntegration(
            name.title(),
            function,
            payload_format_version=api.PayloadFormatVersion.VERSION_2_0,
            timeout=Duration.seconds(API_TIMEOUT),
        )
        for path in paths:
            (route,) = self.api.add_routes(
                path=path,
                methods=[api.HttpMethod.ANY],
                integration=integration,
                authorizer=authorizer,
            )
            if authorizer is None:
                accept(route, APIG4="Load balancers and monitors ask it, and it says up or down.")

    def _stage(self) -> api.HttpStage:
        limits = self._config.api
        return api.HttpStage(
            self,
            "Default",
            http_api=self.api,
            stage_name="$default",
            auto_deploy=True,
            detailed_metrics_enabled=True,
            throttle=api.ThrottleSettings(
                rate_limit=limits.rate_limit, burst_limit=limits.burst_limit
            ),
            access_log_settings=_AccessLog(log_group(self, "AccessLogs", self._config)),
        )


ACCESS_LOG = {
    "requestId": "$context.requestId",
    "time": "$context.requestTime",
    "ip": "$context.identity.sourceIp",
    "route": "$context.routeKey",
    "status": "$context.status",
    "latency": "$context.responseLatency",
    "error": "$context.integrationErrorMessage",
}
"""Who asked for what and how it ended; never a token or a body."""


@jsii.implements(api.IAccessLogSettings)
class _AccessLog:
    """Where the API writes a line for each request, and what is in it."""

    def __init__(self, group: logs.LogGroup) -> None:
        self._group = group

    @property
    def destination(self) -> api.IAccessLogDestination:
        """Name the log group."""
        return api.LogGroupLogDestination(self._group)

    @property
    def format(self) -> apigateway.AccessLogFormat:
        """Name the fields."""
        return apigateway.AccessLogFormat.custom(json.dumps(ACCESS_LOG))
