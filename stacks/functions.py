"""One function of this app: its code, its log group and its tag."""

from typing import Any

from aws_cdk import Duration, RemovalPolicy, Tags
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from constructs import Construct

from stacks.acknowledged import accept, accept_permission, aws_policy
from stacks.assets import Assets
from stacks.config import Config
from stacks.network import retention

TAG = "lambda-pg:function"


def new_function(
    scope: Construct,
    folder: str,
    *,
    config: Config,
    assets: Assets,
    timeout: int,
    extra: tuple[str, ...] = (),
    **options: Any,
) -> lambda_.Function:
    """Make the function of `functions/<folder>`; `extra` folders go into its zip as well."""
    function = lambda_.Function(
        scope,
        folder.title(),
        runtime=assets.runtime,
        architecture=assets.architecture,
        code=assets.function(folder, *extra),
        handler="handler.handler",
        memory_size=config.functions.memory,
        timeout=Duration.seconds(timeout),
        log_group=log_group(scope, f"{folder.title()}Logs", config),
        logging_format=lambda_.LoggingFormat.JSON,
        environment={
            "POWERTOOLS_SERVICE_NAME": folder,
            "POWERTOOLS_LOG_LEVEL": config.functions.log_level,
        },
        **options,
    )
    Tags.of(function).add(TAG, folder)
    _accept_findings(function, in_network="vpc" in options)
    return function


def _accept_findings(function: lambda_.Function, *, in_network: bool) -> None:
    accept(function, L1="The runtime is a setting; 3.13 is supported until June 2029.")
    accept_permission(
        function,
        aws_policy("AWSLambdaBasicExecutionRole"),
        "AWS's own policy for writing logs; it grows with what Lambda needs.",
    )
    if in_network:
        accept_permission(
            function,
            aws_policy("AWSLambdaVPCAccessExecutionRole"),
            "AWS's own policy for a function's network interfaces, whose ids nobody knows before.",
        )


def log_group(scope: Construct, name: str, config: Config) -> logs.LogGroup:
    """Make a log group that keeps events for the stage's days."""
    return logs.LogGroup(
        scope,
        name,
        retention=retention(config.log_retention_days),
        removal_policy=RemovalPolicy.DESTROY,
    )
