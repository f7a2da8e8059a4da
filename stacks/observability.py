"""One dashboard, and an alarm with a runbook for each problem that needs a person."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cdk_monitoring_constructs as monitoring
from aws_cdk import Duration, Stack
from aws_cdk import aws_apigatewayv2 as apigatewayv2
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from constructs import Construct

from lambda_pg_cdk.stacks.api import ApiStack
from lambda_pg_cdk.stacks.database import REPORT_HOURS, ROTATION_OFF
from lambda_pg_cdk.stacks.nag_exceptions import suppress_serverless
from lambda_pg_cdk.stacks.pooler.pgbouncer import METRICS, supervisor_metric
from lambda_pg_cdk.stacks.published import published
from lambda_pg_cdk.stacks.sql import REFUSED_KEYS, UNAVAILABLE, metrics_of
from lambda_pg_cdk.stacks.sql_logins import secret_of
from lambda_pg_cdk.stage.capacity import max_connections
from lambda_pg_cdk.stage.config import Config

MINUTE = Duration.minutes(1)
ABOVE = cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD
BELOW = cloudwatch.ComparisonOperator.LESS_THAN_THRESHOLD

NEARLY_ALL = 0.9
"""Share of a limit at which an alarm fires."""


CERTIFICATE_DAYS = 21
"""Remaining days of the pooler's certificate at which an alarm fires: its renewal, at 30 days by a
weekly function, has then failed."""

REFUSED_A_MINUTE = 60
"""Requests to `/sql` with a wrong key in a minute: one client with an old key, or guesses."""

FAILED_LOGINS = 20
"""In a minute, for all tasks; the rotation of a single user makes some logins fail for a second."""


@dataclass(frozen=True)
class _Watched:
    """A metric, the value at which an alarm fires, and its runbook."""

    name: str
    metric: cloudwatch.Metric
    threshold: float
    runbook: str
    comparison: cloudwatch.ComparisonOperator = ABOVE
    missing: cloudwatch.TreatMissingData = cloudwatch.TreatMissingData.NOT_BREACHING
    periods: int | None = None
    """Consecutive periods after which the alarm fires; None: two of three."""


class ObservabilityStack(Stack):
    """Alarms go to a topic if the stage has an address.

    Public: `watch`, `watch_sql`, `watch_sign_ins`, `watch_background`.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,  # noqa: A002 - CDK's own name
        *,
        config: Config,
        api: ApiStack,
        **options: Any,
    ) -> None:
        super().__init__(scope, id, **options)
        self._config = config
        # Dashboard names are unique in all regions of an account.
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
        self._watch_pooler()
        self._watch_database()
        self._watch_api(api)

    def _action(self, email: str | None) -> monitoring.IAlarmActionStrategy:
        if email is None:
            return monitoring.NoopAlarmActionStrategy()
        topic = sns.Topic(self, "Alarms", enforce_ssl=True)
        # This policy replaces SNS's default, which lets the whole account publish.
        # https://repost.aws/knowledge-center/cloudwatch-receive-sns-for-alarm-trigger
        topic.add_to_resource_policy(
            iam.PolicyStatement(
                principals=[iam.ServicePrincipal("cloudwatch.amazonaws.com")],
                actions=["sns:Publish"],
                resources=[topic.topic_arn],
                conditions={"StringEquals": {"aws:SourceAccount": self.account}},
            )
        )
        topic.add_subscription(subscriptions.EmailSubscription(email))
        reason = "SNS retries mail by itself, and the alarm's history has what was sent."
        suppress_serverless(topic, SNSRedrivePolicy=reason)
        return monitoring.SnsAlarmActionStrategy(on_alarm_topic=topic)

    def _runbook(self, anchor: str) -> str:
        return f"{self._config.observability.runbooks}#{anchor}"

    def _value(self, value: str) -> str:
        return published(self._config, value).read(self)

    def _watch_pooler(self) -> None:
        if self._config.pooler == "pgbouncer":
            self._show("Pooler: PgBouncer", self._pgbouncer())
        if self._config.pooler == "rds-proxy":
            self._show("Pooler: RDS Proxy", self._rds_proxy())

    def _pgbouncer(self) -> Iterator[_Watched]:
        settings = self._config.pgbouncer

        def metric(name: str, statistic: str) -> cloudwatch.Metric:
            return supervisor_metric(self._config, name, statistic)

        balanced = {
            "LoadBalancer": self._value("pooler/load-balancer"),
            "TargetGroup": self._value("pooler/target-group"),
        }
        service = {
            "ClusterName": self._value("pooler/cluster"),
            "ServiceName": self._value("pooler/service"),
        }
        # Each node of the balancer has its own count: AWS recommends an alarm on the maximum.
        healthy = _metric("AWS/NetworkELB", "HealthyHostCount", balanced, "Maximum")
        cpu = _metric("AWS/ECS", "CPUUtilization", service, "Average")
        most, refused = settings.max_client_conn * NEARLY_ALL, metric("RefusedConnections", "Sum")
        used, waiting = (
            metric("ServerConnectionsUsed", "Maximum"),
            metric("ClientsWaiting", "Maximum"),
        )
        wait, given_up = metric("MaxWait", "Maximum"), metric("QueueTimeouts", "Sum")
        clients = metric("ClientConnections", "Maximum")
        gone = cloudwatch.TreatMissingData.BREACHING
        yield _Watched("PoolerGone", healthy, 1, "the-pooler-is-gone", BELOW, gone)
        yield _Watched("PoolerCpu", cpu, 80, "the-pooler-is-busy")
        yield _Watched("PoolerClients", clients, most, "clients-are-refused")
        yield _Watched("RefusedClients", refused, 1, "clients-are-refused")
        yield _Watched("ServerConnectionsUsed", used, 100 * NEARLY_ALL, "the-queue-grows")
        yield _Watched("ClientsWaiting", waiting, self._config.pool_size, "the-queue-grows")
        yield _Watched("QueueTime", wait, settings.query_wait_timeout * 0.5, "the-queue-grows")
        yield _Watched("QueueTimeouts", given_up, 1, "the-queue-grows")
        days, unreadable = (
            metric("CertificateDays", "Minimum"),
            metric("UnreadableSecrets", "Maximum"),
        )
        failed, minutes = metric("FailedLogins", "Sum"), max(1, settings.metrics_interval / 60)
        yield _Watched(
            "CertificateDays", days, CERTIFICATE_DAYS, "the-certificate-is-not-renewed", BELOW
        )
        yield _Watched("UnreadableSecrets", unreadable, 1, "a-secret-cannot-be-read")
        yield _Watched("FailedLogins", failed, FAILED_LOGINS * minutes, "logins-fail-at-the-pooler")

    def _rds_proxy(self) -> Iterator[_Watched]:
        limit, _ = max_connections(self._config)
        share = limit * self._config.rds_proxy.max_connections_percent / 100
        proxy = {"ProxyName": self._value("pooler/proxy")}

        def metric(name: str, statistic: str) -> cloudwatch.Metric:
            return _metric("AWS/RDS", name, proxy, statistic)

        # Each node of the proxy reports its own count: the sum of a minute is the proxy's.
        pinned = metric("DatabaseConnectionsCurrentlySessionPinned", "Sum")
        used = metric("DatabaseConnections", "Sum")
        # In microseconds.
        borrow = metric("DatabaseConnectionsBorrowLatency", "Average")
        half = self._config.rds_proxy.borrow_timeout * 500_000
        refused = metric("ClientConnectionsSetupFailedAuth", "Sum")
        failed = metric("DatabaseConnectionsSetupFailed", "Sum")
        yield _Watched("PinnedSessions", pinned, max(1, share * 0.2), "sessions-are-pinned")
        yield _Watched("ServerConnectionsUsed", used, share * NEARLY_ALL, "the-queue-grows")
        yield _Watched("QueueTime", borrow, half, "the-queue-grows")
        yield _Watched("RefusedLogins", refused, 5, "clients-are-refused")
        yield _Watched("FailedServerLogins", failed, 5, "clients-are-refused")

    def _watch_database(self) -> None:
        database = self._config.database
        named = database.kind != "existing" or database.existing.identifier is not None
        if database.kind == "none" or not named:
            return
        limit, _ = max_connections(self._config)
        cluster = database.kind == "aurora" or database.existing.cluster
        kind = "DBClusterIdentifier" if cluster else "DBInstanceIdentifier"
        dimensions = {kind: self._value("database/identifier")}
        connections = _metric("AWS/RDS", "DatabaseConnections", dimensions, "Maximum")
        watched = _Watched(
            "Connections", connections, limit * NEARLY_ALL, "connections-outside-of-the-budget"
        )
        self._show(f"Database: server connections of {limit}", iter([watched]))

    def _watch_api(self, api: ApiStack) -> None:
        self._board.monitor_api_gateway_v2_http_api(
            api=api.api,
            human_readable_name="API",
            alarm_friendly_name="Api",
            add5xx_count_alarm={"Warning": self._errors(5, "requests-fail")},
        )

    def watch(self, name: str, timeout: int) -> None:
        """Watch a function of the app by its published name; `timeout` is in seconds.

        Not by a reference: the export in use would keep the function from being removed.
        """
        self._board.monitor_lambda_function(
            lambda_function=self._function(name.title(), f"functions/{name}"),
            human_readable_name=f"Function {name}",
            alarm_friendly_name=name.title(),
            add_fault_count_alarm={"Warning": self._errors(5, "requests-fail")},
            add_throttles_count_alarm={"Warning": self._errors(1, "functions-are-throttled")},
            add_latency_p99_alarm={
                "Warning": monitoring.LatencyThreshold(
                    max_latency=Duration.seconds(timeout / 2),
                    runbook_link=self._runbook("requests-are-slow"),
                )
            },
        )

    def watch_sql(self) -> None:
        """Watch what only `/sql` has: keys, its errors by route, and the API for tokens."""
        self._show("SQL over HTTP", self._sql())
        if self._config.sql.jwt:
            api = apigatewayv2.HttpApi.from_http_api_attributes(
                self, "SqlTokens", http_api_id=self._value("sql/token-api-id")
            )
            self._board.monitor_api_gateway_v2_http_api(
                api=api,
                human_readable_name="API of /sql for tokens",
                alarm_friendly_name="SqlTokens",
                add5xx_count_alarm={"Warning": self._errors(5, "requests-fail")},
            )
        if self._config.database.kind != "none" and not self._config.by_token:
            self._show("Rotation of /sql's roles", self._sql_rotation_off())

    def _sql(self) -> Iterator[_Watched]:
        namespace = metrics_of(self._config)
        refused = _metric(namespace, REFUSED_KEYS, {}, "Sum")
        unavailable = _metric(namespace, UNAVAILABLE, {}, "Sum")
        yield _Watched("SqlRefusedKeys", refused, REFUSED_A_MINUTE, "keys-are-refused")
        yield _Watched("SqlUnavailable", unavailable, 5, "sql-answers-503")

    def _sql_rotation_off(self) -> Iterator[_Watched]:
        for role in self._config.sql.roles:
            secret = {"Secret": self._value(secret_of(role))}
            off = _metric(METRICS, ROTATION_OFF, secret, "Maximum", Duration.hours(REPORT_HOURS))
            name = f"Sql{role.title()}RotationOff"
            yield _Watched(name, off, 1, "the-rotation-is-off", periods=1)

    def watch_sign_ins(self) -> None:
        """Watch the function that every sign-in waits for; further calls change nothing."""
        if self.node.try_find_child("Scopes") is not None:
            return
        self._board.monitor_lambda_function(
            lambda_function=self._function("Scopes", "identity/scopes-function"),
            human_readable_name="Function scopes",
            alarm_friendly_name="Scopes",
            add_fault_count_alarm={"Warning": self._errors(0, "sign-ins-fail")},
            add_throttles_count_alarm={"Warning": self._errors(0, "sign-ins-fail")},
        )

    def watch_background(self, api: ApiStack) -> None:
        """Watch the scheduled functions: each failure fires the alarm."""
        background: list[tuple[str, str, lambda_.IFunction]] = [
            ("Migrate", "a-migration-failed", api.migrate)
        ]
        if self._config.database.kind != "none" and not self._config.by_token:
            rotate = self._function("Rotate", "database/rotation-function")
            background.append(("Rotate", "a-rotation-failed", rotate))
            self._show("Rotation", self._rotation_off())
        if self._config.pooler == "pgbouncer":
            certificate = self._function("Certificate", "pooler/certificate-function")
            background.append(("Certificate", "the-certificate-is-not-renewed", certificate))
        for name, anchor, function in background:
            self._board.monitor_lambda_function(
                lambda_function=function,
                human_readable_name=f"Function {name.lower()}",
                alarm_friendly_name=name,
                add_fault_count_alarm={
                    "Warning": monitoring.ErrorCountThreshold(
                        max_error_count=0,
                        datapoints_to_alarm=1,
                        evaluation_periods=1,
                        runbook_link=self._runbook(anchor),
                    )
                },
            )

    def _rotation_off(self) -> Iterator[_Watched]:
        """Watch the metric that the function `rotate` writes every hour."""
        secret = {"Secret": self._value("database/application-secret-arn")}
        hour = Duration.hours(REPORT_HOURS)
        off = _metric(METRICS, ROTATION_OFF, secret, "Maximum", hour)
        yield _Watched("RotationOff", off, 1, "the-rotation-is-off", periods=1)

    def _function(self, name: str, value: str) -> lambda_.IFunction:
        return lambda_.Function.from_function_name(self, name, self._value(value))

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
        threshold = monitoring.CustomThreshold(
            threshold=watched.threshold,
            comparison_operator=watched.comparison,
            treat_missing_data_override=watched.missing,
            runbook_link=self._runbook(watched.runbook),
            datapoints_to_alarm=watched.periods,
            evaluation_periods=watched.periods,
        )
        return monitoring.CustomMetricWithAlarm(
            metric=watched.metric,
            alarm_friendly_name=watched.name,
            add_alarm={"Warning": threshold},
        )


def _metric(
    namespace: str,
    name: str,
    dimensions: dict[str, str],
    statistic: str,
    period: Duration = MINUTE,
) -> cloudwatch.Metric:
    return cloudwatch.Metric(
        namespace=namespace,
        metric_name=name,
        dimensions_map=dimensions,
        statistic=statistic,
        period=period,
    )
