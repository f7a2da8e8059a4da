"""What `POST /sql` has besides its function: keys, variables, throttles and the tokens' API."""

from typing import cast

from aws_cdk import CfnOutput, Duration, RemovalPolicy, SecretValue
from aws_cdk import aws_apigatewayv2 as api
from aws_cdk import aws_apigatewayv2_integrations as integrations
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from lambda_pg_cdk.stacks.api import ApiStack
from lambda_pg_cdk.stacks.functions import add_variables, may_read
from lambda_pg_cdk.stacks.http_stage import new_stage
from lambda_pg_cdk.stacks.identity import route_authorizer
from lambda_pg_cdk.stacks.nag_exceptions import suppress
from lambda_pg_cdk.stacks.published import published
from lambda_pg_cdk.stacks.sql_logins import roles_of
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.consistency import API_TIMEOUT
from lambda_pg_cdk.stage.sql_environment import sql_variables

PATH = "/sql"
ROUTES = ("POST /sql", "OPTIONS /sql")
"""Without an authorizer: the function checks the key, and answers a browser's question."""

NO_KEYS = '{"keys": {}}'
"""The first content of the table of keys. CloudFormation writes a secret again if its text in the
template changes: this one must stay as it is."""

REFUSED_KEYS = "SqlRefusedKeys"
UNAVAILABLE = "SqlUnavailable"
"""Metrics that CloudWatch counts in the function's log."""


def metrics_of(config: Config) -> str:
    """Name the namespace of these metrics: a metric filter sets no fixed dimension."""
    return f"LambdaPg/{config.stack_prefix}"


class SqlFront(Construct):
    """Serves `/sql` by a function that the stage has made. Public: `token_api`."""

    def __init__(
        self,
        scope: ApiStack,
        id: str,  # noqa: A002 - CDK's own name
        *,
        config: Config,
        function: lambda_.Function,
        alias: lambda_.Alias,
    ) -> None:
        super().__init__(scope, id)
        self._config, self._function, self._stack = config, function, scope
        keys = self._keys()
        add_variables(function, {**sql_variables(config), "SQL_KEYS_SECRET_ARN": keys.secret_arn})
        function.add_environment("SQL_ROLES", roles_of(function, config))
        function.add_to_role_policy(may_read(keys.secret_arn))
        self._add_routes(alias)
        self._count()
        self.token_api = self._by_token(alias) if config.sql.jwt else None
        published(config, "sql/keys-secret-arn").write(self, keys.secret_arn)
        CfnOutput(scope, "SqlUrl", value=f"{scope.api.api_endpoint}{PATH}")
        CfnOutput(scope, "SqlKeysArn", value=keys.secret_arn)

    def _keys(self) -> secretsmanager.Secret:
        """Make the table of keys, which no deployment writes again."""
        kept = self._config.termination_protection
        secret = secretsmanager.Secret(
            self,
            "Keys",
            description="Table of the keys of /sql: hashes, roles and limits",
            secret_string_value=SecretValue.unsafe_plain_text(NO_KEYS),
            removal_policy=RemovalPolicy.RETAIN if kept else RemovalPolicy.DESTROY,
        )
        suppress(secret, SMG4="It has hashes of keys, which are revoked one by one.")
        return secret

    def _add_routes(self, alias: lambda_.Alias) -> None:
        """Add the routes to the stage's API, with a separate throttle."""
        sql = self._config.sql
        stage = cast(api.CfnStage, self._stack.stage.node.default_child)
        stage.route_settings = {
            route: {
                "ThrottlingRateLimit": sql.rate_limit,
                "ThrottlingBurstLimit": sql.burst_limit,
                "DetailedMetricsEnabled": True,
            }
            for route in ROUTES
        }
        for route in ROUTES:
            name = self._function.node.id
            # API Gateway knows no settings of a route that does not exist yet.
            stage.node.add_dependency(self._stack.routes.add(route, alias, name, public=True))

    def _count(self) -> None:
        """Count refused keys and requests without a connection in the function's log."""
        filters = {
            REFUSED_KEYS: logs.FilterPattern.all(
                logs.FilterPattern.string_value("$.sqlstate", "=", "28P01"),
                logs.FilterPattern.is_null("$.key"),  # a statement can raise 28P01 too
            ),
            UNAVAILABLE: logs.FilterPattern.number_value("$.status", "=", 503),
        }
        for name, pattern in filters.items():
            logs.MetricFilter(
                self,
                name,
                log_group=self._function.log_group,
                filter_pattern=pattern,
                metric_namespace=metrics_of(self._config),
                metric_name=name,
                metric_value="1",
                default_value=0,
            )

    def _by_token(self, alias: lambda_.Alias) -> api.HttpApi:
        """Add the API for callers with a token: docs/decisions/0047."""
        scope, sql = Construct(self, "Tokens"), self._config.sql
        description = f"{self._stack.stack_name}: /sql by token"
        http_api = api.HttpApi(scope, "Http", create_default_stage=False, description=description)
        integration = integrations.HttpLambdaIntegration(
            "Sql",
            alias,
            payload_format_version=api.PayloadFormatVersion.VERSION_2_0,
            timeout=Duration.seconds(API_TIMEOUT),
        )
        token = self._stack.identity.new_authorizer(scope, http_api)
        authorizer = route_authorizer(scope, token.authorizer_id)
        for route, guard in zip(ROUTES, (authorizer, None), strict=True):
            method, _, path = route.partition(" ")
            added = api.HttpRoute(
                scope,
                method.title(),
                http_api=http_api,
                route_key=api.HttpRouteKey.with_(path, api.HttpMethod[method]),
                integration=integration,
                authorizer=guard,
            )
            if guard is None:
                suppress(added, APIG4="Browsers send this request without a token.")
        new_stage(scope, self._config, http_api, rate=sql.rate_limit, burst=sql.burst_limit)
        published(self._config, "sql/token-api-id").write(scope, http_api.api_id)
        CfnOutput(self._stack, "SqlTokenUrl", value=f"{http_api.api_endpoint}{PATH}")
        return http_api
