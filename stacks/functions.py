"""A function: its code, logs and tag; and the layer and the network for any function."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jsii
from aws_cdk import (
    ArnFormat,
    Duration,
    Fn,
    IStableListProducer,
    Lazy,
    RemovalPolicy,
    Stack,
    Tags,
)
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from constructs import Construct

from lambda_pg_cdk.stacks.assets import Assets
from lambda_pg_cdk.stacks.nag_exceptions import (
    aws_policy,
    suppress,
    suppress_permission,
    suppress_serverless,
)
from lambda_pg_cdk.stacks.network import let_in, retention
from lambda_pg_cdk.stacks.published import published
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.sources import (
    CONTAINER,
    SOURCE,
    layer_parameter,
    source_metadata,
    targets_of,
)

TAG = "lambda-pg:function"


def new_function(  # noqa: PLR0913 - what differs between functions, most of it optional
    scope: Construct,
    source: Path,
    *,
    config: Config,
    assets: Assets,
    timeout: int,
    invoked: str,
    name: str | None = None,
    runtime: str | None = None,
    handler: str = "handler.handler",
    extra: Sequence[str] = (),
    code: lambda_.Code | None = None,
    **options: Any,
) -> lambda_.Function:
    """Make the function of a folder; the project's folders in `extra` go into its zip as well.

    `code` replaces both. `invoked` is the reason why it needs no dead-letter queue: what invokes it
    and handles failures. `name` is the folder's by default, `runtime` the stage's Python;
    'container' builds the folder's Dockerfile.
    """
    name = name or source.name
    common: dict[str, Any] = {
        "architecture": assets.architecture,
        "memory_size": config.functions.memory,
        "timeout": Duration.seconds(timeout),
        "log_group": log_group(scope, f"{name.title()}Logs", config),
        "logging_format": lambda_.LoggingFormat.JSON,
        "tracing": lambda_.Tracing.ACTIVE,
        "environment": {
            "POWERTOOLS_SERVICE_NAME": name,
            "POWERTOOLS_LOG_LEVEL": config.functions.log_level,
        },
        **options,
    }
    if runtime == CONTAINER:
        function: lambda_.Function = lambda_.DockerImageFunction(
            scope, name.title(), code=assets.container(source), **common
        )
    else:
        function = lambda_.Function(
            scope,
            name.title(),
            runtime=assets.runtime_of(runtime),
            code=code or assets.function(source, *extra, runtime=runtime),
            handler=handler,
            **common,
        )
    Tags.of(function).add(TAG, name)
    if not extra and code is None and runtime != CONTAINER:
        function.node.add_metadata(SOURCE, source_metadata(name, source))
    version = "The runtime is a setting; 3.13 is supported until June 2029."
    if runtime is not None:
        version = "The app names the runtime."
    suppress(function, L1=version)
    suppress_serverless(function, LambdaLatestVersion=version, LambdaDLQ=invoked)
    suppress_permission(function, "Resource::*", "X-Ray's permissions know no resource.")
    suppress_permission(
        function,
        aws_policy("AWSLambdaBasicExecutionRole"),
        "AWS's own policy for writing logs; it grows with what Lambda needs.",
    )
    return function


def log_group(scope: Construct, name: str, config: Config) -> logs.LogGroup:
    """Make a log group with the stage's retention."""
    return logs.LogGroup(
        scope,
        name,
        retention=retention(config.log_retention_days),
        removal_policy=RemovalPolicy.DESTROY,
    )


def add_variables(function: lambda_.Function, variables: Mapping[str, str]) -> None:
    """Set environment variables of a function."""
    for name, value in variables.items():
        function.add_environment(name, value)


def layer_value(function: lambda_.Function, config: Config) -> str | None:
    """Name the published layer for the function's runtime; None if it is built for another one."""
    for target in targets_of(config):
        if function.runtime.name == f"python{target.python}":
            return layer_parameter(config, target)
    return None


def add_layer(function: lambda_.Function, config: Config) -> None:
    """Add the newest layer for the function's runtime, if there is one, to those that it has.

    Not by `add_layers`: CDK would put the token, which differs in each synthesis, into the hash
    that names the function's version.
    """
    value = layer_value(function, config)
    if value is None:
        return
    resource = cast(lambda_.CfnFunction, function.node.default_child)
    stack = Stack.of(function)
    published_arn = Fn.split(":", published(config, value).read(stack))
    # Only name and version are read: a published ARN cannot name a layer of another account.
    arn = stack.format_arn(
        service="lambda",
        resource="layer",
        resource_name=Fn.join(":", [Fn.select(n, published_arn) for n in (6, 7)]),
        arn_format=ArnFormat.COLON_RESOURCE_NAME,
    )
    resource.layers = Lazy.list(_Layers(function, resource.layers, arn))


@jsii.implements(IStableListProducer)
class _Layers:
    """A function's own layers, at the time its template is written, and one more."""

    def __init__(self, function: lambda_.Function, own: list[str] | None, arn: str) -> None:
        self._function, self._own, self._arn = function, own, arn

    def produce(self) -> list[str]:
        """Resolve the others and append ours."""
        return [*(Stack.of(self._function).resolve(self._own) or []), self._arn]


def may_read(arn: str) -> iam.PolicyStatement:
    """Return the statement to read exactly one secret; CDK's grant allows DescribeSecret too."""
    return iam.PolicyStatement(actions=["secretsmanager:GetSecretValue"], resources=[arn])


def read_secret(function: lambda_.Function, arn: str, key_arn: str | None = None) -> None:
    """Let a function read exactly one secret, which a customer managed key may encrypt.

    Secrets Manager decrypts with the caller's permissions (AWS, "Secret encryption and decryption
    in AWS Secrets Manager"): the function may use the key through Secrets Manager only.
    """
    function.add_to_role_policy(may_read(arn))
    if key_arn is not None:
        service = f"secretsmanager.{key_arn.split(':')[3]}.amazonaws.com"
        function.add_to_role_policy(
            iam.PolicyStatement(
                actions=["kms:Decrypt"],
                resources=[key_arn],
                conditions={"StringEquals": {"kms:ViaService": service}},
            )
        )


def join_network(
    function: lambda_.Function, config: Config, *, endpoints_only: bool = False
) -> ec2.SecurityGroup:
    """Put a function into the stage's private subnets, with a new group that reaches AWS.

    With `endpoints_only` the group reaches the stage's interface endpoints only, if it has them.
    """
    stack = Stack.of(function)
    vpc = ec2.Vpc.from_vpc_attributes(
        function,
        "Vpc",
        vpc_id=published(config, "network/vpc").read(stack),
        availability_zones=list(config.availability_zones),
    )
    group = ec2.SecurityGroup(
        function,
        "Group",
        vpc=vpc,
        description=f"Function {function.node.id}",
        allow_all_outbound=False,
    )
    if endpoints_only and config.has_endpoints:
        let_in(group, published(config, "network/endpoints").read(stack), 443, "the endpoints")
    else:
        group.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(443), "to the AWS APIs")
    cast(
        lambda_.CfnFunction, function.node.default_child
    ).vpc_config = lambda_.CfnFunction.VpcConfigProperty(
        subnet_ids=published(config, "network/subnets").read_list(stack),
        security_group_ids=[group.security_group_id],
    )
    _allow_interfaces(function)
    return group


INTERFACES = (
    "ec2:AssignPrivateIpAddresses",
    "ec2:CreateNetworkInterface",
    "ec2:DeleteNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSubnets",
    "ec2:DetachNetworkInterface",
    "ec2:UnassignPrivateIpAddresses",
)
"""Actions that AWS advises to deny to the code of a function in a VPC.
https://docs.aws.amazon.com/lambda/latest/dg/configuration-vpc.html"""


def _allow_interfaces(function: lambda_.Function) -> None:
    """Let Lambda make the function's network interfaces, but not the function's code.

    Calls of the code have `lambda:SourceFunctionArn`, calls of Lambda do not.
    https://docs.aws.amazon.com/lambda/latest/dg/permissions-source-function-arn.html
    """
    name = "AWSLambdaVPCAccessExecutionRole"
    policy = iam.ManagedPolicy.from_aws_managed_policy_name(f"service-role/{name}")
    if function.role is not None:
        function.role.add_managed_policy(policy)
    function.add_to_role_policy(
        iam.PolicyStatement(
            effect=iam.Effect.DENY,
            actions=list(INTERFACES),
            resources=["*"],
            conditions={"Null": {"lambda:SourceFunctionArn": "false"}},
        )
    )
    suppress_permission(
        function,
        aws_policy(name),
        "AWS's own policy for network interfaces; Lambda creates them later, with unknown ids.",
    )
