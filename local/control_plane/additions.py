"""Resource types that MiniStack lacks, and properties that its stacks drop."""

import hashlib
from collections.abc import Callable
from importlib import import_module
from typing import Any

from lambda_pg_cdk.local.control_plane import (
    databases,
    functions,
    hooks,
    rotation,
    secret_versions,
    services,
    stacks,
)
from lambda_pg_cdk.local.control_plane.cloud import Cloud
from lambda_pg_cdk.local.control_plane.handlers import (
    Handlers,
    Made,
    Properties,
    arn,
    complete,
    named,
)


def _proxy(name: str) -> dict[str, Any]:
    """Return the attributes of a DBProxy. Its ARN has an id, which policies need, and no name."""
    id_ = f"prx-{hashlib.sha256(name.encode()).hexdigest()[:17]}"
    endpoint = {"Endpoint": "127.0.0.1", "VpcId": "vpc-00000000"}
    return {"DBProxyArn": arn("rds", f"db-proxy:{id_}"), **endpoint}


def _proxy_endpoint(name: str) -> dict[str, Any]:
    id_ = f"prx-endpoint-{hashlib.sha256(name.encode()).hexdigest()[:17]}"
    attributes = {"Endpoint": "127.0.0.1", "VpcId": "vpc-00000000", "IsDefault": False}
    return {"DBProxyEndpointArn": arn("rds", f"db-proxy-endpoint:{id_}"), **attributes}


# These are accepted but do nothing here: RDS Proxy, alarms on alarms, gradual deployments, and how
# long CloudWatch keeps logs.
TYPES: dict[str, Handlers] = {
    "AWS::EC2::EIP": named("eipalloc", lambda i: {"AllocationId": i, "PublicIp": "192.0.2.1"}),
    "AWS::EC2::NatGateway": named("nat", lambda i: {"NatGatewayId": i}),
    "AWS::EC2::FlowLog": named("fl", lambda i: {"Id": i}),
    "AWS::EC2::SecurityGroupIngress": named("sgr", lambda i: {"Id": i}),
    "AWS::EC2::SecurityGroupEgress": named("sgr", lambda i: {"Id": i}),
    "AWS::EC2::VPCCidrBlock": named("vpc-cidr-assoc", lambda i: {"Id": i}),
    "AWS::ApplicationAutoScaling::ScalableTarget": named("target", lambda i: {"Id": i}),
    "AWS::ApplicationAutoScaling::ScalingPolicy": named("policy", lambda i: {"Arn": i}),
    "AWS::CloudWatch::CompositeAlarm": named(
        "alarm", lambda i: {"Arn": arn("cloudwatch", f"alarm:{i}")}, "AlarmName"
    ),
    "AWS::CodeDeploy::Application": named("application", lambda _: {}, "ApplicationName"),
    "AWS::CodeDeploy::DeploymentGroup": named("group", lambda _: {}, "DeploymentGroupName"),
    "AWS::RDS::DBProxy": named("proxy", _proxy, "DBProxyName"),
    "AWS::RDS::DBProxyEndpoint": named("endpoint", _proxy_endpoint, "DBProxyEndpointName"),
    "AWS::RDS::DBProxyTargetGroup": named("target-group", lambda i: {"TargetGroupArn": i}),
    "AWS::SecretsManager::ResourcePolicy": named("policy", lambda i: {"Id": i}, "SecretId"),
    # CDK's function for it needs an AWS SDK that MiniStack's Node does not have.
    "Custom::LogRetention": named("retention", lambda i: {"LogGroupName": i}, "LogGroupName"),
}


ALARM = named("alarm", lambda i: {"Arn": arn("cloudwatch", f"alarm:{i}")}, "AlarmName")
"""Accepted and never raised: nothing is measured, and MiniStack's alarms refuse metric math."""


def install(cloud: Cloud, key: str) -> None:
    """Add the types and wrap the handlers; the hooks have been checked.

    Every signature is verified with `key`.
    """
    provisioners = import_module(hooks.PROVISIONERS)
    table = provisioners._RESOURCE_HANDLERS
    for kind, handlers in TYPES.items():
        table.setdefault(kind, handlers)
    table["AWS::CloudWatch::Alarm"] = ALARM
    databases.install(table, provisioners, cloud)
    secret_versions.install(table)
    rotation.install(table)
    functions.install(table, cloud, key)
    camel = provisioners._pascal_to_camel
    complete(table["AWS::ApiGatewayV2::Api"], _api_completion(camel))
    complete(table["AWS::ApiGatewayV2::Stage"], _stage_completion(camel))
    services.install(table, camel)
    _issue_one_key(key)
    stacks.install()


def _issue_one_key(key: str) -> None:
    """Make STS and IAM issue keys whose secret is the one that signatures are verified with."""
    for name in (hooks.STS, hooks.IAM):
        module: Any = import_module(name)
        module._gen_secret = lambda: key


def _api_completion(camel: Callable[[Any], Any]) -> Callable[[Made, Properties], Made]:
    apis = import_module("ministack.services.apigateway")._apis

    def completion(made: Made, props: Properties) -> Made:
        if cors := props.get("CorsConfiguration"):
            apis[made[0]]["corsConfiguration"] = camel(cors)
        return made

    return completion


def _stage_completion(camel: Callable[[Any], Any]) -> Callable[[Made, Properties], Made]:
    stages = import_module("ministack.services.apigateway")._stages

    def completion(made: Made, props: Properties) -> Made:
        stage = stages.get(props.get("ApiId", ""), {}).get(made[1].get("StageName", ""))
        if stage is not None:
            stage["defaultRouteSettings"] = camel(props.get("DefaultRouteSettings", {}))
            stage["routeSettings"] = {
                key: camel(value) for key, value in props.get("RouteSettings", {}).items()
            }
        return made

    return completion
