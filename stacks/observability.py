"""One dashboard, and an alarm for each thing that somebody has to act on, with its runbook."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cdk_monitoring_constructs as monitoring
from aws_cdk import Duration, Stack
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from constructs import Construct

from stacks.api import ApiStack
from stacks.capacity import max_connections
from stacks.config import Config
from stacks.database import DatabaseStack
from stacks.pooler import PgBouncerStack, Pooler, RdsProxyStack

MINUTE = Duration.minutes(1)
ABOVE = cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD
BELOW = cloudwatch.ComparisonOperator.LESS_THAN_THRESHOLD

NEARLY_ALL = 0.9
"""Share of a limit at which an alarm rises."""


@dataclass(frozen=True)
class _Watched:
    """A metric, the value at which somebody has to act, and where it says how."""

    name: str
    metric: cloudwatch.Metric
    threshold: float
    runbook: str
    comparison: cloudwatch.ComparisonOperator = ABOVE


class ObservabilityStack(Stack):
    """Alarms go to a topic where the stage names an address."""

    def __init__(
        self,
        scope: Construct,
        id: str,  # noqa: A002 - CDK's own name
        *,
        config: Config,
        api: ApiStack,
        database: DatabaseStack | None,
        pooler: Pooler,
        **options: Any,
    ) -> None:
        super().__init__(scope, id, **options)
        self._config = config
        # CloudWatch keeps the dashboards of all regions in one list.
        name = f"{config.stack_prefix}-{config.region}"
        self._board = monitoring.MonitoringFacade(
            self,
            "Monitoring",
            alarm_factory_defaults=monitoring.AlarmFactoryDefaults(
                actions_enabled=True,
                alarm_name_prefix=config.stack_prefix,
                action=self._action(config.observability.email),
                datapoints_to_alarm=2,
                evaluation_periods=3,
            ),
            metric_factory_defaults=monitoring.MetricFactoryDefaults(namespace="LambdaPg"),
            dashboard_factory=monitoring.DefaultDashboardFactory(
                self, "Dashboards", dashboard_name_prefix=name
            ),
        )
        self._watch_pooler(pooler)
        if database is not None:
            self._watch_database(database)
        self._watch_functions(api, database, pooler)

    def _action(self, email: str | None) -> monitoring.IAlarmActionStrategy:
        if email is None:
            return monitoring.NoopAlarmActionStrategy()
        topic = sns.Topic(self, "Alarms", enforce_ssl=True)
        topic.add_subscription(subscriptions.EmailSubscription(email))
        return monitoring.SnsAlarmActionStrategy(on_alarm_topic=topic)

    def _runbook(self, anchor: str) -> str:
        return f"{self._config.observability.runbooks}#{anchor}"

    def _watch_pooler(self, pooler: Pooler) -> None:
        if isinstance(pooler, PgBouncerStack):
            self._show("Pooler: PgBouncer", self._pgbouncer(pooler))
        elif isinstance(pooler, RdsProxyStack):
            self._show("Pooler: RDS Proxy", self._rds_proxy(pooler))

    def _pgbouncer(self, pooler: PgBouncerStack) -> Iterator[_Watched]:
        settings = self._config.pgbouncer
        healthy = pooler.targets.metrics.healthy_host_count(period=MINUTE, statistic="Minimum")
        cpu = pooler.service.metric_cpu_utilization(period=MINUTE)
        clients = pooler.metric("ClientConnections", "Maximum")
        most = settings.max_client_conn * NEARLY_ALL
        used = pooler.metric("ServerConnectionsUsed", "Maximum")
        waiting = pooler.metric("ClientsWaiting", "Maximum")
        wait = pooler.metric("MaxWait", "Maximum")
        yield _Watched("PoolerGone", healthy, 1, "the-pooler-is-gone", BELOW)
        yield _Watched("PoolerCpu", cpu, 80, "the-pooler-is-busy")
        yield _Watched("PoolerClients", clients, most, "clients-are-refused")
        refused = pooler.metric("RefusedConnections", "Sum")
        yield _Watched("RefusedClients", refused, 1, "clients-are-refused")
        yield _Watched("ServerConnectionsUsed", used, 100 * NEARLY_ALL, "the-queue-grows")
        yield _Watched("ClientsWaiting", waiting, settings.max_db_connections, "the-queue-grows")
        yield _Watched("QueueTime", wait, settings.query_wait_timeout * 0.5, "the-queue-grows")
        given_up = pooler.metric("QueueTimeouts", "Sum")
        yield _Watched("QueueTimeouts", given_up, 1, "the-queue-grows")

    def _rds_proxy(self, pooler: RdsProxyStack) -> Iterator[_Watched]:
        limit, _ = max_connections(self._config)
        share = limit * self._config.rds_proxy.max_connections_percent / 100
        pinned = pooler.metric("DatabaseConnectionsCurrentlySessionPinned", "Maximum")
        used = pooler.metric("DatabaseConnections", "Maximum")
        # In microseconds.
        borrow = pooler.metric("DatabaseConnectionsBorrowLatency", "Average")
        half = self._config.rds_proxy.borrow_timeout * 500_000
        refused = pooler.metric("ClientConnectionsSetupFailedAuth", "Sum")
        failed = pooler.metric("DatabaseConnectionsSetupFailed", "Sum")
        yield _Watched("PinnedSessions", pinned, max(1, share * 0.2), "sessions-are-pinned")
        yield _Watched("ServerConnectionsUsed", used, share * NEARLY_ALL, "the-queue-grows")
        yield _Watched("QueueTime", borrow, half, "the-queue-grows")
        yield _Watched("RefusedLogins", refused, 5, "clients-are-refused")
        yield _Watched("FailedServerLogins", failed, 5, "clients-are-refused")

    def _watch_database(self, database: DatabaseStack) -> None:
        if not database.server.identifier:
            return
        limit, _ = max_connections(self._config)
        connections = cloudwatch.Metric(
            namespace="AWS/RDS",
            metric_name="DatabaseConnections",
            dimensions_map=database.server.dimensions,
            statistic="Maximum",
            period=MINUTE,
        )
        watched = _Watched(
            "Connections", connections, limit * NEARLY_ALL, "connections-outside-of-the-budget"
        )
        self._show(f"Database: server connections of {limit}", iter([watched]))

    def _watch_functions(
        self, api: ApiStack, database: DatabaseStack | None, pooler: Pooler
    ) -> None:
        self._board.monitor_api_gateway_v2_http_api(
            api=api.api,
            human_readable_name="API",
            alarm_friendly_name="Api",
            add5xx_count_alarm={"Warning": self._errors(5, "requests-fail")},
        )
        seconds = self._config.functions.timeout / 2
        for function in api.functions:
            self._board.monitor_lambda_function(
                lambda_function=function,
                human_readable_name=f"Function {function.node.id.lower()}",
                alarm_friendly_name=function.node.id,
                add_fault_count_alarm={"Warning": self._errors(5, "requests-fail")},
                add_throttles_count_alarm={"Warning": self._errors(1, "functions-are-throttled")},
                add_latency_p99_alarm={
                    "Warning": monitoring.LatencyThreshold(
                        max_latency=Duration.seconds(seconds),
                        runbook_link=self._runbook("requests-are-slow"),
                    )
                },
            )
        background = {"a-migration-failed": api.migrate}
        if database is not None and database.rotation is not None:
            background["a-rotation-failed"] = database.rotation
        if isinstance(pooler, PgBouncerStack):
            background["the-certificate-is-not-renewed"] = pooler.certificate.function
        for anchor, function in background.items():
            self._board.monitor_lambda_function(
                lambda_function=function,
                human_readable_name=f"Function {function.node.id.lower()}",
                alarm_friendly_name=function.node.id,
                add_fault_count_alarm={
                    "Warning": monitoring.ErrorCountThreshold(
                        max_error_count=0,
                        datapoints_to_alarm=1,
                        evaluation_periods=1,
                        runbook_link=self._runbook(anchor),
                    )
                },
            )

    def _errors(self, count: int, anchor: str) -> Any:
        return monitoring.ErrorCountThreshold(
            max_error_count=count, runbook_link=self._runbook(anchor)
        )

    def _show(self, title: str, watched: Iterator[_Watched]) -> None:
        self._board.monitor_custom(
            human_readable_name=title,
            alarm_friendly_name=title.partition(":")[0],
            metric_groups=[
                monitoring.CustomMetricGroup(title=each.name, metrics=[self._with_alarm(each)])
                for each in watched
            ],
        )

    def _with_alarm(self, watched: _Watched) -> monitoring.CustomMetricWithAlarm:
        missing = cloudwatch.TreatMissingData
        below = watched.comparison == BELOW
        threshold = monitoring.CustomThreshold(
            threshold=watched.threshold,
            comparison_operator=watched.comparison,
            treat_missing_data_override=missing.BREACHING if below else missing.NOT_BREACHING,
            runbook_link=self._runbook(watched.runbook),
        )
        return monitoring.CustomMetricWithAlarm(
            metric=watched.metric,
            alarm_friendly_name=watched.name,
            add_alarm={"Warning": threshold},
        )
