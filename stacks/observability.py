"""One dashboard, and alarms for what users notice first."""

from typing import Any

from aws_cdk import Duration, Stack
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from constructs import Construct

from stacks.api import ApiStack
from stacks.config import Config
from stacks.database import DatabaseStack
from stacks.pooler.pgbouncer import PgBouncerStack

MINUTE = Duration.minutes(1)


class ObservabilityStack(Stack):
    """Alarms go to a topic where the stage names an address."""

    def __init__(
        self,
        scope: Construct,
        id: str,  # noqa: A002 - CDK's own name
        *,
        config: Config,
        api: ApiStack,
        database: DatabaseStack,
        pooler: PgBouncerStack,
        **options: Any,
    ) -> None:
        super().__init__(scope, id, **options)
        ceiling = config.database.max_connections
        healthy = pooler.targets.metrics.healthy_host_count(period=MINUTE, statistic="Minimum")
        cpu = pooler.service.metric_cpu_utilization(period=MINUTE)
        errors = api.api.metric_server_error(period=MINUTE, statistic="Sum")
        connections = database.instance.metric_database_connections(
            period=MINUTE, statistic="Maximum"
        )
        self._topic = self._make_topic(config.observability.email)
        self._alarm(
            "PoolerGone", healthy, 1, below=True, means="no pooler answers: every request fails"
        )
        self._alarm("PoolerBusy", cpu, 80, means="a pooler uses its core: raise pooler.tasks")
        self._alarm("ServerErrors", errors, 5, means="the API answers 5xx")
        self._alarm(
            "ConnectionsHigh",
            connections,
            ceiling * 0.9,
            means="server connections near max_connections: something is outside of the budget",
        )
        cloudwatch.Dashboard(
            self,
            "Dashboard",
            widgets=[
                [_graph("Pooler: healthy tasks", healthy), _graph("Pooler: CPU, %", cpu)],
                [
                    _graph("API: 5xx a minute", errors),
                    _graph(f"Connections of {ceiling}", connections),
                ],
            ],
        )

    def _make_topic(self, email: str | None) -> sns.Topic | None:
        if email is None:
            return None
        topic = sns.Topic(self, "Alarms", enforce_ssl=True)
        topic.add_subscription(subscriptions.EmailSubscription(email))
        return topic

    def _alarm(
        self,
        name: str,
        metric: cloudwatch.IMetric,
        threshold: float,
        *,
        means: str,
        below: bool = False,
    ) -> None:
        compare = cloudwatch.ComparisonOperator
        missing = cloudwatch.TreatMissingData
        alarm = cloudwatch.Alarm(
            self,
            name,
            metric=metric,
            threshold=threshold,
            evaluation_periods=3,
            datapoints_to_alarm=2,
            comparison_operator=compare.LESS_THAN_THRESHOLD
            if below
            else compare.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
            treat_missing_data=missing.BREACHING if below else missing.NOT_BREACHING,
            alarm_description=means,
        )
        if self._topic is not None:
            alarm.add_alarm_action(actions.SnsAction(self._topic))


def _graph(title: str, metric: cloudwatch.IMetric) -> cloudwatch.GraphWidget:
    return cloudwatch.GraphWidget(title=title, left=[metric], width=12)
