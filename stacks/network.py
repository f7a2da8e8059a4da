"""The VPC, how its private subnets reach AWS, and the private DNS zone."""

from typing import Any

from aws_cdk import RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_logs as logs
from aws_cdk import aws_route53 as route53
from constructs import Construct

from stacks.acknowledged import accept, accept_by_id
from stacks.config import Config

INTERFACE_ENDPOINTS = {
    "EcrApi": ec2.InterfaceVpcEndpointAwsService.ECR,
    "EcrDocker": ec2.InterfaceVpcEndpointAwsService.ECR_DOCKER,
    "Logs": ec2.InterfaceVpcEndpointAwsService.CLOUDWATCH_LOGS,
    "Secrets": ec2.InterfaceVpcEndpointAwsService.SECRETS_MANAGER,
}


class NetworkStack(Stack):
    """A VPC over the stage's zones. Faces: `vpc`, `subnets`, `zone`."""

    def __init__(self, scope: Construct, id: str, *, config: Config, **options: Any) -> None:  # noqa: A002
        self._zones = list(config.availability_zones)
        super().__init__(scope, id, **options)
        nat = config.network.egress == "nat"
        private = ec2.SubnetType.PRIVATE_WITH_EGRESS if nat else ec2.SubnetType.PRIVATE_ISOLATED
        self.vpc = ec2.Vpc(
            self,
            "Vpc",
            ip_addresses=ec2.IpAddresses.cidr(config.network.cidr),
            availability_zones=self._zones,
            nat_gateways=config.network.nat_gateways if nat else 0,
            # Nothing is in the default group; restricting it would take a custom resource.
            restrict_default_security_group=False,
            subnet_configuration=[
                *([_subnets("Public", ec2.SubnetType.PUBLIC)] if nat else []),
                _subnets("Private", private),
            ],
        )
        self._accept_findings(config)
        self.subnets = ec2.SubnetSelection(subnet_group_name="Private")
        self.zone = route53.PrivateHostedZone(
            self, "Zone", zone_name=config.network.zone, vpc=self.vpc
        )
        if not nat:
            self._add_endpoints()
        if config.network.flow_logs:
            self._log_flows(config.log_retention_days)

    @property
    def availability_zones(self) -> list[str]:
        """Answer with the stage's zones: CDK would ask the account for them during synth."""
        return self._zones

    def _accept_findings(self, config: Config) -> None:
        accept_by_id(
            self.vpc,
            "CloudFormation-Validate::W3010",
            "The zones are a setting: choosing them during synth would need a look-up.",
        )
        if not config.network.flow_logs:
            accept(self.vpc, VPC7="This stage has network.flow_logs off: it holds no real data.")

    def _add_endpoints(self) -> None:
        for name, service in INTERFACE_ENDPOINTS.items():
            self.vpc.add_interface_endpoint(name, service=service, subnets=self.subnets)
        self.vpc.add_gateway_endpoint(
            "S3", service=ec2.GatewayVpcEndpointAwsService.S3, subnets=[self.subnets]
        )

    def _log_flows(self, days: int) -> None:
        group = logs.LogGroup(
            self,
            "FlowLogs",
            retention=retention(days),
            removal_policy=RemovalPolicy.DESTROY,
        )
        self.vpc.add_flow_log(
            "Flows", destination=ec2.FlowLogDestination.to_cloud_watch_logs(group)
        )


def retention(days: int) -> logs.RetentionDays:
    """Turn a number of days into CDK's name for it."""
    return _RETENTION[days]


def _subnets(name: str, kind: ec2.SubnetType) -> ec2.SubnetConfiguration:
    return ec2.SubnetConfiguration(name=name, subnet_type=kind)


_RETENTION = {
    1: logs.RetentionDays.ONE_DAY,
    3: logs.RetentionDays.THREE_DAYS,
    5: logs.RetentionDays.FIVE_DAYS,
    7: logs.RetentionDays.ONE_WEEK,
    14: logs.RetentionDays.TWO_WEEKS,
    30: logs.RetentionDays.ONE_MONTH,
    60: logs.RetentionDays.TWO_MONTHS,
    90: logs.RetentionDays.THREE_MONTHS,
    180: logs.RetentionDays.SIX_MONTHS,
    365: logs.RetentionDays.ONE_YEAR,
    731: logs.RetentionDays.TWO_YEARS,
    1827: logs.RetentionDays.FIVE_YEARS,
    3653: logs.RetentionDays.TEN_YEARS,
}
