"""The stage of an HTTP API: its throttle, its metrics and its access log."""

import json

import jsii
from aws_cdk import aws_apigateway as apigateway
from aws_cdk import aws_apigatewayv2 as api
from aws_cdk import aws_logs as logs
from constructs import Construct

from lambda_pg_cdk.stacks.functions import log_group
from lambda_pg_cdk.stage.config import Config

ACCESS_LOG = {
    "requestId": "$context.requestId",
    "time": "$context.requestTime",
    "ip": "$context.identity.sourceIp",
    "route": "$context.routeKey",
    "status": "$context.status",
    "latency": "$context.responseLatency",
    "error": "$context.integrationErrorMessage",
}
"""The fields of the access log: the client, the route and the result; no token and no body."""


def new_stage(
    scope: Construct, config: Config, http_api: api.HttpApi, *, rate: int, burst: int
) -> api.HttpStage:
    """Make an API's default stage; `rate` is in requests a second, `burst` in requests."""
    return api.HttpStage(
        scope,
        "Default",
        http_api=http_api,
        stage_name="$default",
        auto_deploy=True,
        detailed_metrics_enabled=True,
        throttle=api.ThrottleSettings(rate_limit=rate, burst_limit=burst),
        access_log_settings=_AccessLog(log_group(scope, "AccessLogs", config)),
    )


@jsii.implements(api.IAccessLogSettings)
class _AccessLog:
    """The log group and the format of the access log, one line for each request."""

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
