"""The VPC, its way to AWS, the private DNS zone, and security groups."""

from typing import Any

from aws_cdk import RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from aws_cdk import aws_route53 as route53
from constructs import Construct

from lambda_pg_cdk.stacks.nag_exceptions import suppress, suppress_permission, suppress_zones
from lambda_pg_cdk.stacks.published import published
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.peers import subnet_mask

ENDPOINTS = {
    "EcrApi": ec2.InterfaceVpcEndpointAwsService.ECR,
    "EcrDocker": ec2.InterfaceVpcEndpointAwsService.ECR_DOCKER,
    "Logs": ec2.InterfaceVpcEndpointAwsService.CLOUDWATCH_LOGS,
    "Secrets": ec2.InterfaceVpcEndpointAwsService.SECRETS_MANAGER,
}
"""Endpoints that functions and tasks need without NAT."""

MOST_ZONES = 3

SESSION_ENDPOINTS = {
    "Ssm": ec2.InterfaceVpcEndpointAwsService.SSM,
    "SsmMessages": ec2.InterfaceVpcEndpointAwsService.SSM_MESSAGES,
    "Ec2Messages": ec2.InterfaceVpcEndpointAwsService.EC2_MESSAGES,
}
"""Endpoints that Session Manager needs on an instance."""

PEERS_ENDPOINT = "data-servicediscovery"
"""Endpoint by which PgBouncer's tasks find each other. It has no policy: AWS does not document
whether Cloud Map's endpoints take one, and EC2 rejects a policy for a service that does not."""


class NetworkStack(Stack):
    """A VPC in the stage's zones, or an existing one. Public: `vpc`, `subnets`, `cidrs`, `zone`."""

    def __init__(self, scope: Construct, id: str, *, config: Config, **options: Any) -> None:  # noqa: A002 - CDK's own name
        self._zones = list(config.availability_zones)
        super().__init__(scope, id, **options)
        if config.network.vpc_id is None:
            self.vpc: ec2.IVpc = self._create(config)
        else:
            self.vpc = self._find(config.network.vpc_id, config)
        self.subnets = ec2.SubnetSelection(
            subnets=self.vpc.private_subnets or self.vpc.isolated_subnets
        )
        if config.pooler != "external":
            self.zone = route53.PrivateHostedZone(self, "Zone", zone_name=config.zone, vpc=self.vpc)
        published(config, "network/vpc").write(self, self.vpc.vpc_id)
        published(config, "network/subnets").write_list(
            self, [subnet.subnet_id for subnet in self.subnets.subnets or ()]
        )

    @property
    def cidrs(self) -> list[str]:
        """Return the address ranges of the private subnets."""
        return [subnet.ipv4_cidr_block for subnet in self.subnets.subnets or ()]

    @property
    def availability_zones(self) -> list[str]:
        """Return the stage's zones: CDK would look them up in the account during synth."""
        return self._zones

    def _find(self, vpc_id: str, config: Config) -> ec2.IVpc:
        """Use the existing VPC that the settings describe; nothing is looked up."""
        network = config.network
        return ec2.Vpc.from_vpc_attributes(
            self,
            "Vpc",
            vpc_id=vpc_id,
            availability_zones=self._zones,
            private_subnet_ids=list(network.subnet_ids),
            private_subnet_ipv4_cidr_blocks=list(network.subnet_cidrs) or None,
        )

    def _create(self, config: Config) -> ec2.Vpc:
        nat = config.network.egress == "nat"
        private = ec2.SubnetType.PRIVATE_WITH_EGRESS if nat else ec2.SubnetType.PRIVATE_ISOLATED
        mask = subnet_mask(config.network.cidr)
        vpc = ec2.Vpc(
            self,
            "Vpc",
            ip_addresses=ec2.IpAddresses.cidr(config.network.cidr),
            availability_zones=self._zones,
            # Keep addresses free for a zone that is added later.
            reserved_azs=MOST_ZONES - len(self._zones),
            nat_gateways=config.network.nat_gateways if nat else 0,
            # The default group is unused; restricting it would need a custom resource.
            restrict_default_security_group=False,
            subnet_configuration=[
                ec2.SubnetConfiguration(name="Private", subnet_type=private, cidr_mask=mask),
                *([_public(mask)] if nat else []),
            ],
        )
        self._suppress_findings(vpc, config)
        if not nat:
            self._add_endpoints(vpc, config)
        if config.network.flow_logs:
            self._log_flows(vpc, config.log_retention_days)
        return vpc

    def _suppress_findings(self, vpc: ec2.Vpc, config: Config) -> None:
        suppress_zones(vpc)
        if not config.network.flow_logs:
            suppress(vpc, VPC7="This stage has network.flow_logs off: it holds no real data.")

    def _add_endpoints(self, vpc: ec2.Vpc, config: Config) -> None:
        services: dict[str, ec2.IInterfaceVpcEndpointService] = dict(ENDPOINTS)
        if config.pooler == "pgbouncer":
            services["Peers"] = ec2.InterfaceVpcEndpointAwsService(PEERS_ENDPOINT)
        if config.network.bastion:
            services |= SESSION_ENDPOINTS
        # With the literal addresses: CDK's own rule has a reference, which rule sets cannot check.
        group = ec2.SecurityGroup(
            self, "Endpoints", vpc=vpc, description="Interface endpoints", allow_all_outbound=False
        )
        inside = ec2.Peer.ipv4(config.network.cidr)
        group.add_ingress_rule(inside, ec2.Port.tcp(443), "from the VPC")
        published(config, "network/endpoints").write(self, group.security_group_id)
        for name, service in services.items():
            endpoint = vpc.add_interface_endpoint(
                name, service=service, open=False, security_groups=[group]
            )
            if name in ENDPOINTS:
                endpoint.add_to_policy(self._for_this_account("aws:ResourceAccount"))
            elif name in SESSION_ENDPOINTS:
                # The documents of Session Manager belong to AWS.
                endpoint.add_to_policy(self._for_this_account())
        s3 = vpc.add_gateway_endpoint("S3", service=ec2.GatewayVpcEndpointAwsService.S3)
        s3.add_to_policy(self._for_this_account("aws:ResourceAccount"))
        s3.add_to_policy(_for_everybody(buckets_of_aws(config)))

    def _for_this_account(self, *keys: str) -> iam.PolicyStatement:
        """Allow principals of this account, to resources that `keys` say belong to it too.

        A request without a resource, such as GetAuthorizationToken, may lack a key.
        https://github.com/aws-samples/data-perimeter-policy-examples/tree/main/vpc_endpoint_policies
        """
        conditions = {"StringEquals": {"aws:PrincipalAccount": self.account}}
        if keys:
            conditions["StringEqualsIfExists"] = dict.fromkeys(keys, self.account)
        return iam.PolicyStatement(
            principals=[iam.AnyPrincipal()], actions=["*"], resources=["*"], conditions=conditions
        )

    def _log_flows(self, vpc: ec2.Vpc, days: int) -> None:
        group = logs.LogGroup(
            self, "FlowLogs", retention=retention(days), removal_policy=RemovalPolicy.DESTROY
        )
        destination = ec2.FlowLogDestination.to_cloud_watch_logs(group)
        flows = vpc.add_flow_log("Flows", destination=destination)
        assert flows.iam_role is not None  # noqa: S101 - CDK makes one for this destination
        # CDK leaves these out, and the service asks for them:
        # https://docs.aws.amazon.com/vpc/latest/userguide/flow-logs-iam-role.html
        for action, resource in (
            ("logs:CreateLogGroup", group.log_group_arn),
            ("logs:DescribeLogGroups", "*"),
        ):
            flows.iam_role.add_to_principal_policy(
                iam.PolicyStatement(actions=[action], resources=[resource])
            )
        suppress_permission(flows, "Resource::*", "logs:DescribeLogGroups knows no resource.")


def buckets_of_aws(config: Config) -> list[str]:
    """Return AWS's buckets that are read without a principal of this account.

    ECR signs the URLs of image layers itself:
    https://docs.aws.amazon.com/AmazonECR/latest/userguide/vpc-endpoints.html
    An instance downloads packages without a signature:
    https://docs.aws.amazon.com/linux/al2023/ug/managing-repos-os-updates.html
    """
    buckets = [f"prod-{config.region}-starport-layer-bucket"]
    if config.network.bastion:
        buckets.append(f"al2023-repos-{config.region}-de612dc2")
    return buckets


def _for_everybody(buckets: list[str]) -> iam.PolicyStatement:
    return iam.PolicyStatement(
        principals=[iam.AnyPrincipal()],
        actions=["s3:GetObject"],
        resources=[f"arn:aws:s3:::{bucket}/*" for bucket in buckets],
    )


def _public(mask: int) -> ec2.SubnetConfiguration:
    return ec2.SubnetConfiguration(name="Public", subnet_type=ec2.SubnetType.PUBLIC, cidr_mask=mask)


def closed_group(scope: Construct, name: str, vpc: ec2.IVpc, description: str) -> ec2.SecurityGroup:
    """Make a security group that reaches only the targets that are added to it.

    Rules to other groups are separate resources, and EC2 lets a group whose template has no rule
    reach everything. So the template has one rule, to an unused address.
    """
    group = ec2.SecurityGroup(
        scope, name, vpc=vpc, description=description, allow_all_outbound=False
    )
    group.add_egress_rule(ec2.Peer.ipv4("255.255.255.255/32"), ec2.Port.tcp(1), "nowhere")
    return group


def let_in(client: ec2.SecurityGroup, server_group_id: str, port: int, what: str) -> None:
    """Let one security group reach a port of another.

    Both rules are in the client's stack: a rule in the server's stack would make a cycle.
    """
    client.add_egress_rule(
        ec2.Peer.security_group_id(server_group_id), ec2.Port.tcp(port), f"to {what}"
    )
    ec2.CfnSecurityGroupIngress(
        client,
        f"Into{what.title().replace(' ', '')}",
        group_id=server_group_id,
        source_security_group_id=client.security_group_id,
        ip_protocol="tcp",
        from_port=port,
        to_port=port,
        description=f"{client.node.path.replace('/', ' ')} to {what}",
    )


def retention(days: int) -> logs.RetentionDays:
    """Return CDK's name for a number of days."""
    return _RETENTION[days]


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
