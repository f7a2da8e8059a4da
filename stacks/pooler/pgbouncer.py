"""PgBouncer on ECS Fargate behind an internal network load balancer."""

from typing import Any

from aws_cdk import Duration, RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from aws_cdk import aws_route53 as route53
from aws_cdk import aws_route53_targets as targets
from constructs import Construct

from stacks import published
from stacks.acknowledged import accept, accept_permission
from stacks.assets import Assets
from stacks.config import Config
from stacks.database import DatabaseStack
from stacks.network import NetworkStack, retention
from stacks.pooler.certificate import Certificate

RUN_DIR = "/run/pgbouncer"


class PgBouncerStack(Stack):
    """The service, its certificate and its name. Implements `stacks.pooler.Pooler`."""

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
        self._config, self._network, self._database = config, network, database
        self.host = config.pooler.endpoint_host or f"pooler.{config.network.zone}"
        self.port = config.pooler.port
        self.certificate = Certificate(
            self, "Certificate", config=config, assets=assets, names=[self.host]
        )
        self.service = self._service(self._task(assets))
        self.service.node.add_dependency(self.certificate)
        self.load_balancer, self.targets = self._balance()
        self.connections = self.load_balancer.connections
        self._name()

    def attach(self, function: lambda_.Function) -> None:
        """Give a function the way, the permission and the environment to connect."""
        function.connections.allow_to(self.load_balancer, ec2.Port.tcp(self.port), "to the pooler")
        secret = self._database.application_secret
        secret.grant_read(function)
        scope = Stack.of(function)
        for name, value in {
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGDATABASE": self._config.database.name,
            "PGSSLMODE": "verify-full",
            "LAMBDA_PG_PROFILE": "pgbouncer",
            "LAMBDA_PG_SECRET_ARN": secret.secret_arn,
            "LAMBDA_PG_CA_PEM": published.pooler_ca(self._config.stage).read(scope),
        }.items():
            function.add_environment(name, value)

    def _task(self, assets: Assets) -> ecs.FargateTaskDefinition:
        settings = self._config.pooler
        task = ecs.FargateTaskDefinition(
            self,
            "Task",
            cpu=settings.cpu,
            memory_limit_mib=settings.memory,
            runtime_platform=ecs.RuntimePlatform(
                cpu_architecture=assets.cpu, operating_system_family=ecs.OperatingSystemFamily.LINUX
            ),
            volumes=[ecs.Volume(name="run")],
        )
        container = task.add_container(
            "pgbouncer",
            image=assets.pooler_image(),
            environment=self._environment(),
            logging=ecs.LogDrivers.aws_logs(stream_prefix="pgbouncer", log_group=self._logs()),
            port_mappings=[ecs.PortMapping(container_port=self.port)],
            readonly_root_filesystem=True,
            stop_timeout=Duration.seconds(settings.drain_timeout + 10),
            ulimits=[ecs.Ulimit(name=ecs.UlimitName.NOFILE, soft_limit=65536, hard_limit=65536)],
        )
        container.add_mount_points(
            ecs.MountPoint(container_path=RUN_DIR, source_volume="run", read_only=False)
        )
        self._database.application_secret.grant_read(task.task_role)
        self.certificate.grant_read(task.task_role)
        accept(task, ECS2="Addresses, sizes and ARNs only: passwords are read from the secrets.")
        accept_permission(
            task, "Resource::*", "ecr:GetAuthorizationToken knows no resource; CDK's grant."
        )
        return task

    def _environment(self) -> dict[str, str]:
        config, settings = self._config, self._config.pooler
        environment = {
            "LISTEN_ADDR": "0.0.0.0",  # noqa: S104 - inside a task; its security group decides
            "LISTEN_PORT": self.port,
            "DATABASE_HOST": published.database_host(config.stage).read(self),
            "DATABASE_PORT": published.database_port(config.stage).read(self),
            "DATABASE_NAME": config.database.name,
            "USER_SECRET_ARNS": self._database.application_secret.secret_arn,
            "CERTIFICATE_SECRET_ARN": self.certificate.secret.secret_arn,
            "POOL_MODE": settings.pool_mode,
            "MAX_CLIENT_CONN": settings.max_client_conn,
            "DEFAULT_POOL_SIZE": settings.default_pool_size,
            "MAX_DB_CONNECTIONS": settings.max_db_connections,
            "QUERY_WAIT_TIMEOUT": settings.query_wait_timeout,
            "REFRESH_INTERVAL": settings.refresh_interval,
            "DRAIN_TIMEOUT": settings.drain_timeout,
            "RUN_DIR": RUN_DIR,
        }
        if config.database.ca_file:
            environment["SERVER_TLS_CA_FILE"] = config.database.ca_file
        return {name: str(value) for name, value in environment.items()}

    def _logs(self) -> logs.LogGroup:
        return logs.LogGroup(
            self,
            "Logs",
            retention=retention(self._config.log_retention_days),
            removal_policy=RemovalPolicy.DESTROY,
        )

    def _service(self, task: ecs.FargateTaskDefinition) -> ecs.FargateService:
        vpc, settings = self._network.vpc, self._config.pooler
        group = ec2.SecurityGroup(
            self, "TaskGroup", vpc=vpc, description="PgBouncer tasks", allow_all_outbound=False
        )
        group.add_egress_rule(ec2.Peer.any_ipv4(), ec2.Port.tcp(443), "to the AWS APIs")
        service = ecs.FargateService(
            self,
            "Service",
            cluster=ecs.Cluster(
                self,
                "Cluster",
                vpc=vpc,
                container_insights_v2=ecs.ContainerInsights.ENABLED,
            ),
            task_definition=task,
            desired_count=settings.tasks,
            min_healthy_percent=100,
            max_healthy_percent=settings.maximum_percent,
            security_groups=[group],
            vpc_subnets=self._network.subnets,
            circuit_breaker=ecs.DeploymentCircuitBreaker(enable=True, rollback=True),
            availability_zone_rebalancing=ecs.AvailabilityZoneRebalancing.DISABLED,
        )
        service.connections.allow_to_default_port(self._database.connections, "to PostgreSQL")
        return service

    def _balance(self) -> tuple[elb.NetworkLoadBalancer, elb.NetworkTargetGroup]:
        group = ec2.SecurityGroup(
            self,
            "BalancerGroup",
            vpc=self._network.vpc,
            description="Clients of the pooler",
            allow_all_outbound=False,
        )
        balancer = elb.NetworkLoadBalancer(
            self,
            "Balancer",
            vpc=self._network.vpc,
            vpc_subnets=self._network.subnets,
            security_groups=[group],
            internet_facing=False,
            cross_zone_enabled=True,
        )
        listener = balancer.add_listener("Listener", port=self.port)
        pool = listener.add_targets(
            "Targets",
            port=self.port,
            targets=[self.service],
            deregistration_delay=Duration.seconds(self._config.pooler.drain_timeout),
            # A TCP connect only: a check that reached the database would recycle every pooler
            # during a failover.
            health_check=elb.HealthCheck(
                protocol=elb.Protocol.TCP,
                interval=Duration.seconds(10),
                healthy_threshold_count=2,
                unhealthy_threshold_count=2,
            ),
        )
        balancer.connections.allow_to(self.service, ec2.Port.tcp(self.port), "to PgBouncer")
        accept(balancer, ELB2="Network load balancers log TLS listeners only; this one is TCP.")
        return balancer, pool

    def _name(self) -> None:
        route53.ARecord(
            self,
            "Name",
            zone=self._network.zone,
            record_name="pooler",
            target=route53.RecordTarget.from_alias(targets.LoadBalancerTarget(self.load_balancer)),
        )
