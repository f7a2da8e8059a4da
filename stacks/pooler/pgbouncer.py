"""PgBouncer on ECS Fargate behind an internal network load balancer."""

from typing import Any, cast

from aws_cdk import Duration, RemovalPolicy, Stack
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_elasticloadbalancingv2 as elb
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from aws_cdk import aws_route53 as route53
from aws_cdk import aws_route53_targets as targets
from aws_cdk import aws_servicediscovery as servicediscovery
from constructs import Construct

from lambda_pg_cdk.stacks.assets import Assets
from lambda_pg_cdk.stacks.database import APPLICATION_SECRET, DatabaseStack
from lambda_pg_cdk.stacks.functions import may_read
from lambda_pg_cdk.stacks.nag_exceptions import suppress, suppress_permission
from lambda_pg_cdk.stacks.network import NetworkStack, closed_group, retention
from lambda_pg_cdk.stacks.pooler.certificate import Certificate
from lambda_pg_cdk.stacks.published import published
from lambda_pg_cdk.stacks.sql_logins import secrets_of
from lambda_pg_cdk.stage.budget import sql_clients
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.peers import check_numbers
from lambda_pg_cdk.stage.task import OPEN_FILES, RUN_DIR, healthy_command

PEERS = "pgbouncer"
METRICS = "LambdaPg"

IDLE_FLOW = 350
"""Idle seconds after which the balancer drops a flow. The layer replaces a connection that was idle
for 340 s. NAT gateways drop flows after 350 s too."""

BUSY_CPU = 60
"""Percent of a task's CPU at which a task is added: a process uses at most one core."""

BUSY_CLIENTS = 70
"""Percent of pgbouncer.max_client_conn, over all tasks, at which a task is added."""


def supervisor_metric(config: Config, name: str, statistic: str) -> cloudwatch.Metric:
    """Return one of the metrics that the supervisors write, over all tasks."""
    return cloudwatch.Metric(
        namespace=METRICS,
        metric_name=name,
        dimensions_map={"Pooler": config.stack_prefix},
        statistic=statistic,
        period=Duration.seconds(max(60, config.pgbouncer.metrics_interval)),
    )


class PgBouncerStack(Stack):
    """The service, its certificate and its DNS name; others read the published values."""

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
        self._secret_arn = published(config, APPLICATION_SECRET).read(self)
        self.host = config.pooler_name
        self.port = config.pgbouncer.port
        check_numbers(config.stage, network.cidrs)
        self.certificate = Certificate(
            self, "Certificate", config=config, assets=assets, names=[self.host]
        )
        self._peers = servicediscovery.PrivateDnsNamespace(
            self, "Peers", name=f"tasks.{config.zone}", vpc=network.vpc
        )
        self.service = self._service(self._task(assets))
        self.service.node.add_dependency(self.certificate)
        self.load_balancer, self.targets = self._balance()
        self._scale()
        self._name()
        self._publish()

    def _publish(self) -> None:
        group = self._balancer_group.security_group_id
        for name, value in {
            "pooler/host": self.host,
            "pooler/port": str(self.port),
            "pooler/profile": "pgbouncer",
            "pooler/security-group": group,
            "pooler/secret-arn": self._secret_arn,
            "pooler/cluster": self.service.cluster.cluster_name,
            "pooler/service": self.service.service_name,
            "pooler/load-balancer": self.load_balancer.load_balancer_full_name,
            "pooler/target-group": self.targets.target_group_full_name,
            "pooler/certificate-function": self.certificate.function.function_name,
        }.items():
            published(self._config, name).write(self, value)

    def _task(self, assets: Assets) -> ecs.FargateTaskDefinition:
        settings = self._config.pgbouncer
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
        self._add_container(task, assets)
        for arn in (self._secret_arn, *secrets_of(self, self._config)):
            task.add_to_task_role_policy(may_read(arn))
        self.certificate.let_read(task.task_role)
        suppress(task, ECS2="Addresses, sizes and ARNs only: passwords are read from the secrets.")
        task.add_to_task_role_policy(self._find_peers())
        suppress_permission(
            task,
            "Resource::*",
            "ecr:GetAuthorizationToken knows no resource; DiscoverInstances has a condition.",
        )
        return task

    def _add_container(self, task: ecs.FargateTaskDefinition, assets: Assets) -> None:
        container = task.add_container(
            "pgbouncer",
            image=assets.pooler_image(),
            environment=self._environment(),
            logging=ecs.LogDrivers.aws_logs(stream_prefix="pgbouncer", log_group=self._logs()),
            port_mappings=[ecs.PortMapping(container_port=self.port)],
            readonly_root_filesystem=True,
            linux_parameters=self._without_capabilities(),
            stop_timeout=Duration.seconds(self._config.pgbouncer.drain_timeout + 10),
            # Detects a supervisor that hangs. The supervisor itself ends a PgBouncer that hangs,
            # and sooner. 30 seconds: a task that only lacks processor time must not be replaced.
            health_check=ecs.HealthCheck(
                command=["CMD-SHELL", healthy_command(RUN_DIR)],
                interval=Duration.seconds(10),
                timeout=Duration.seconds(10),
                retries=3,
                start_period=Duration.seconds(120),
            ),
            ulimits=[
                ecs.Ulimit(name=ecs.UlimitName.NOFILE, soft_limit=OPEN_FILES, hard_limit=OPEN_FILES)
            ],
        )
        container.add_mount_points(
            ecs.MountPoint(container_path=RUN_DIR, source_volume="run", read_only=False)
        )

    def _without_capabilities(self) -> ecs.LinuxParameters:
        parameters = ecs.LinuxParameters(self, "Capabilities", init_process_enabled=False)
        parameters.drop_capabilities(ecs.Capability.ALL)
        return parameters

    def _find_peers(self) -> iam.PolicyStatement:
        """Let a task find the others, in this namespace only."""
        return iam.PolicyStatement(
            actions=["servicediscovery:DiscoverInstances"],
            resources=["*"],
            conditions={
                "StringEquals": {"servicediscovery:NamespaceName": self._peers.namespace_name}
            },
        )

    def _environment(self) -> dict[str, str]:
        config, settings = self._config, self._config.pgbouncer
        environment = {
            "LISTEN_ADDR": "0.0.0.0",  # noqa: S104 - inside a task; its security group decides
            "LISTEN_PORT": self.port,
            "DATABASE_HOST": published(config, "database/host").read(self),
            "DATABASE_PORT": published(config, "database/port").read(self),
            "DATABASE_NAME": config.database.name,
            "USER_SECRET_ARNS": self._secret_arn,
            "CERTIFICATE_SECRET_ARN": self.certificate.secret.secret_arn,
            "POOL_MODE": settings.pool_mode,
            "MAX_CLIENT_CONN": settings.max_client_conn,
            "DEFAULT_POOL_SIZE": config.pool_size,
            "MAX_DB_CONNECTIONS": settings.max_db_connections,
            "QUERY_WAIT_TIMEOUT": settings.query_wait_timeout,
            "REFRESH_INTERVAL": settings.refresh_interval,
            "DRAIN_TIMEOUT": settings.drain_timeout,
            "PEERS_NAMESPACE": self._peers.namespace_name,
            "PEERS_SERVICE": PEERS,
            "METRICS_INTERVAL": settings.metrics_interval,
            "METRICS_NAMESPACE": METRICS,
            "METRICS_POOLER": config.stack_prefix,
            "RUN_DIR": RUN_DIR,
        }
        if config.sql.enabled:
            environment |= {
                "SQL_SECRET_ARNS": ",".join(secrets_of(self, config)),
                "SQL_MAX_DB_CONNECTIONS": config.sql.max_db_connections,
                "SQL_POOL_SIZE": config.sql_pool_size,
                "SQL_MAX_CLIENT_CONN": sql_clients(config),
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
        vpc, settings = self._network.vpc, self._config.pgbouncer
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
            cloud_map_options=ecs.CloudMapOptions(
                name=PEERS,
                cloud_map_namespace=self._peers,
                dns_record_type=servicediscovery.DnsRecordType.A,
                dns_ttl=Duration.seconds(10),
            ),
        )
        self._database.admit(group)
        between = ec2.Port.tcp(self.port)
        group.add_ingress_rule(group, between, "cancel requests between tasks")
        group.add_egress_rule(group, between, "cancel requests between tasks")
        return service

    def _scale(self) -> None:
        """Add tasks for CPU and for clients, up to the number in the budget."""
        settings = self._config.pgbouncer
        if settings.max_tasks == settings.tasks:
            return
        # A number in the template would remove, at each deployment, the tasks that scaling added.
        cast(ecs.CfnService, self.service.node.default_child).add_property_deletion_override(
            "DesiredCount"
        )
        scaling = self.service.auto_scale_task_count(
            min_capacity=settings.tasks, max_capacity=settings.max_tasks
        )
        # Clients of a removed task have to reconnect: remove slowly.
        soon, late = Duration.minutes(1), Duration.minutes(15)
        scaling.scale_on_cpu_utilization(
            "Cpu",
            target_utilization_percent=BUSY_CPU,
            scale_out_cooldown=soon,
            scale_in_cooldown=late,
        )
        scaling.scale_to_track_custom_metric(
            "Clients",
            metric=supervisor_metric(self._config, "ClientConnections", "Average"),
            target_value=settings.max_client_conn * BUSY_CLIENTS // 100,
            scale_out_cooldown=soon,
            scale_in_cooldown=late,
        )

    def _balance(self) -> tuple[elb.NetworkLoadBalancer, elb.NetworkTargetGroup]:
        self._balancer_group = group = closed_group(
            self, "BalancerGroup", self._network.vpc, "Clients of the pooler"
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
        listener = balancer.add_listener(
            "Listener", port=self.port, tcp_idle_timeout=Duration.seconds(IDLE_FLOW)
        )
        pool = listener.add_targets(
            "Targets",
            port=self.port,
            targets=[self.service],
            deregistration_delay=Duration.seconds(self._config.pgbouncer.deregistration_delay),
            # A TCP connect only: a check of the database would replace every pooler during a
            # failover. A PgBouncer that hangs passes it, since its kernel still accepts: the
            # supervisor ends it, and the task stops.
            health_check=elb.HealthCheck(
                protocol=elb.Protocol.TCP,
                interval=Duration.seconds(5),
                healthy_threshold_count=2,
                unhealthy_threshold_count=2,
            ),
        )
        balancer.connections.allow_to(self.service, ec2.Port.tcp(self.port), "to PgBouncer")
        suppress(balancer, ELB2="Network load balancers log TLS listeners only; this one is TCP.")
        return balancer, pool

    def _name(self) -> None:
        route53.ARecord(
            self,
            "Name",
            zone=self._network.zone,
            record_name="pooler",
            target=route53.RecordTarget.from_alias(targets.LoadBalancerTarget(self.load_balancer)),
        )
