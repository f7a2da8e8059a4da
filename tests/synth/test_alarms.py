"""Alarms against what AWS documents: their metrics exist, and somebody hears of them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lambda_pg_cdk.pgbouncer.metrics import UNITS
from lambda_pg_cdk.stage.loading import CDK_JSON
from lambda_pg_cdk.tools.context import NO_ADDRESS
from tests.support.templates import Stage

ALARM = "AWS::CloudWatch::Alarm"
POLICY = "AWS::ApplicationAutoScaling::ScalingPolicy"

Statistics = frozenset[str]
SUM, AVERAGE = frozenset({"Sum"}), frozenset({"Average"})
LEVEL = frozenset({"Average", "Minimum", "Maximum"})

RDS = "https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide"
PROXY = f"{RDS}/rds-proxy.monitoring.html"
INSTANCE = f"{RDS}/rds-metrics.html"
CLUSTER = "https://docs.aws.amazon.com/AmazonRDS/latest/AuroraUserGuide/Aurora.AuroraMonitoring.Metrics.html"
BALANCER = "https://docs.aws.amazon.com/elasticloadbalancing/latest/network/load-balancer-cloudwatch-metrics.html"
SERVICE = "https://docs.aws.amazon.com/AmazonECS/latest/developerguide/available-metrics.html"
HTTP_API = "https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-metrics.html"
LAMBDA = "https://docs.aws.amazon.com/lambda/latest/dg/monitoring-metrics-types.html"
LAMBDA_DIMENSIONS = "https://docs.aws.amazon.com/lambda/latest/dg/monitoring-metrics-view.html"

DOCUMENTED: Mapping[tuple[str, str, tuple[str, ...]], tuple[Statistics, str]] = {
    ("AWS/RDS", "DatabaseConnections", ("ProxyName",)): (SUM, PROXY),
    ("AWS/RDS", "DatabaseConnectionsBorrowLatency", ("ProxyName",)): (AVERAGE, PROXY),
    ("AWS/RDS", "DatabaseConnectionsCurrentlySessionPinned", ("ProxyName",)): (SUM, PROXY),
    ("AWS/RDS", "DatabaseConnectionsSetupFailed", ("ProxyName",)): (SUM, PROXY),
    ("AWS/RDS", "ClientConnectionsSetupFailedAuth", ("ProxyName",)): (SUM, PROXY),
    ("AWS/RDS", "DatabaseConnections", ("DBInstanceIdentifier",)): (LEVEL, INSTANCE),
    ("AWS/RDS", "DatabaseConnections", ("DBClusterIdentifier",)): (LEVEL, CLUSTER),
    ("AWS/NetworkELB", "HealthyHostCount", ("LoadBalancer", "TargetGroup")): (LEVEL, BALANCER),
    ("AWS/ECS", "CPUUtilization", ("ClusterName", "ServiceName")): (LEVEL, SERVICE),
    ("AWS/ApiGateway", "5xx", ("ApiId", "Stage")): (SUM, HTTP_API),
    ("AWS/Lambda", "Errors", ("FunctionName",)): (SUM, LAMBDA),
    ("AWS/Lambda", "Throttles", ("FunctionName",)): (SUM, LAMBDA),
    ("AWS/Lambda", "Duration", ("FunctionName",)): (LEVEL | {"p99"}, LAMBDA),
    ("AWS/Lambda", "Errors", ("FunctionName", "Resource")): (SUM, LAMBDA_DIMENSIONS),
}
"""Namespace, metric and one of its sets of dimensions, as the page has them, and what it is counted
with. A statistic that the page does not call useful is none here."""

PREDEFINED = {"ECSServiceAverageCPUUtilization"}
"""https://docs.aws.amazon.com/autoscaling/application/APIReference/API_PredefinedMetricSpecification.html"""

VALUES: Mapping[str, tuple[str, str]] = {
    "ProxyName": ("AWS::RDS::DBProxy", "Ref"),
    "DBInstanceIdentifier": ("AWS::RDS::DBInstance", "Ref"),
    "DBClusterIdentifier": ("AWS::RDS::DBCluster", "Ref"),
    "LoadBalancer": ("AWS::ElasticLoadBalancingV2::LoadBalancer", "LoadBalancerFullName"),
    "TargetGroup": ("AWS::ElasticLoadBalancingV2::TargetGroup", "TargetGroupFullName"),
    "ClusterName": ("AWS::ECS::Cluster", "Ref"),
    "ServiceName": ("AWS::ECS::Service", "Name"),
}
"""What a dimension's published value is: a resource's Ref or an attribute, as the pages in
https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference say what they return."""

LOWER: Mapping[str, str] = {
    "AWS::RDS::DBProxy": "DBProxyName",
    "AWS::RDS::DBProxyEndpoint": "DBProxyEndpointName",
    "AWS::RDS::DBInstance": "DBInstanceIdentifier",
    "AWS::RDS::DBCluster": "DBClusterIdentifier",
    "AWS::RDS::DBSubnetGroup": "DBSubnetGroupName",
    "AWS::RDS::DBParameterGroup": "DBParameterGroupName",
    "AWS::RDS::DBClusterParameterGroup": "DBClusterParameterGroupName",
}
"""Names that RDS stores in lower case, whatever it is sent. Of proxies:
https://github.com/aws/aws-cdk/issues/38270. Of the others, CreateDBInstance and its like in
https://docs.aws.amazon.com/AmazonRDS/latest/APIReference. CloudFormation makes up names in lower
case for those without one: IdentifierFactory in
https://github.com/aws-cloudformation/aws-cloudformation-resource-providers-rds."""


@dataclass(frozen=True)
class Metric:
    """One metric that somebody is woken for, or that scales something."""

    owner: str
    stack: str
    namespace: str
    name: str
    dimensions: Mapping[str, Any]
    statistic: str

    @property
    def key(self) -> tuple[str, str, tuple[str, ...]]:
        """Name it as `DOCUMENTED` does."""
        return self.namespace, self.name, tuple(sorted(self.dimensions))


def metrics(stage: Stage) -> Iterator[Metric]:
    """Walk the metrics of a stage's alarms and of what scales it."""
    for stack in stage.templates:
        for owner, resource in stage.resources(stack, ALARM).items():
            properties = resource["Properties"]
            for each in properties.get("Metrics", []):
                # Metric math would need other rules.
                stated = each["MetricStat"]
                yield _metric(owner, stack, stated["Metric"], stated["Stat"])
            if "MetricName" in properties:
                statistic = properties.get("Statistic") or properties["ExtendedStatistic"]
                yield _metric(owner, stack, properties, statistic)
        for owner, resource in stage.resources(stack, POLICY).items():
            tracking = resource["Properties"]["TargetTrackingScalingPolicyConfiguration"]
            if stated := tracking.get("CustomizedMetricSpecification"):
                yield _metric(owner, stack, stated, stated["Statistic"])
            else:
                predefined = tracking["PredefinedMetricSpecification"]
                assert predefined["PredefinedMetricType"] in PREDEFINED, owner


def _metric(owner: str, stack: str, stated: Mapping[str, Any], statistic: str) -> Metric:
    dimensions = {each["Name"]: each["Value"] for each in stated.get("Dimensions", [])}
    return Metric(owner, stack, stated["Namespace"], stated["MetricName"], dimensions, statistic)


@pytest.fixture
def every(stages: dict[str, Stage], combinations: dict[str, Stage]) -> list[Stage]:
    """Give all stages and all combinations."""
    return [*stages.values(), *combinations.values()]


def test_every_alarm_s_metric_is_one_that_its_service_documents(every: list[Stage]) -> None:
    """Namespace, name, dimensions and statistic: anything else would never raise an alarm."""
    for each in every:
        found = list(metrics(each))
        assert found
        for metric in found:
            if metric.namespace.startswith("LambdaPg"):
                continue  # ours: `walk/metrics.py` looks for what writes it
            assert metric.key in DOCUMENTED, (metric.owner, metric.key)
            useful, page = DOCUMENTED[metric.key]
            assert metric.statistic in useful, (metric.owner, metric.statistic, page)


def test_every_documented_metric_is_watched(every: list[Stage]) -> None:
    """A row that nothing uses would be held by nothing."""
    assert {metric.key for each in every for metric in metrics(each)} >= set(DOCUMENTED)


def test_every_dimension_s_value_is_what_its_service_calls_the_resource(
    every: list[Stage],
) -> None:
    """A name where metrics have a name, and a load balancer's and a target group's full names."""
    for each in every:
        for metric in metrics(each):
            for dimension, value in metric.dimensions.items():
                if dimension in VALUES:
                    check_value(each, metric, dimension, value)
                if dimension == "FunctionName":
                    # Ref of a function is its name; of an ARN the seventh part.
                    text = json.dumps(value)
                    assert "Ref" in text or '"Fn::Select": [6' in text, metric.owner
                    assert "Arn" not in text, metric.owner


def check_value(stage: Stage, metric: Metric, dimension: str, value: Any) -> None:
    """Follow a dimension's value through the published parameters to the resource."""
    kind, attribute = VALUES[dimension]
    found = published(stage, metric.stack, value)
    if isinstance(found, str):
        # A database that exists already, by its name.
        assert found == "database", metric.owner
        return
    if attribute == "Ref":
        logical = found["Ref"]
    else:
        logical, got = found["Fn::GetAtt"]
        assert got == attribute, metric.owner
    assert logical in {name.partition(".")[2] for name in stage.all(kind)}, metric.owner


def published(stage: Stage, stack: str, value: Any) -> Any:
    """Find what a parameter of a template is published as."""
    name = stage.templates[stack]["Parameters"][value["Ref"]]["Default"]
    (found,) = [
        each["Properties"]["Value"]
        for each in stage.all("AWS::SSM::Parameter").values()
        if each["Properties"]["Name"] == name
    ]
    return found


def test_the_pooler_s_own_metrics_are_those_that_its_supervisor_writes(
    every: list[Stage],
) -> None:
    """Names, namespace and dimension are the ones in the task's environment and in its code."""
    from lambda_pg_cdk.stacks.database import ROTATION_OFF

    for each in every:
        mine = [
            metric
            for metric in metrics(each)
            if metric.namespace == "LambdaPg" and metric.name != ROTATION_OFF
        ]
        tasks = list(each.all("AWS::ECS::TaskDefinition").values())
        assert bool(mine) == bool(tasks)
        for task in tasks:
            (container,) = task["Properties"]["ContainerDefinitions"]
            told = {entry["Name"]: entry["Value"] for entry in container["Environment"]}
            assert told["METRICS_NAMESPACE"] == "LambdaPg"
            for metric in mine:
                assert metric.name in UNITS, metric.owner
                assert metric.dimensions == {"Pooler": told["METRICS_POOLER"]}, metric.owner


def test_a_rotation_that_is_off_is_watched_wherever_there_is_one(every: list[Stage]) -> None:
    """Of the secret that the rule has the function look at; the metric comes as often as it is."""
    from lambda_pg_cdk.stacks.database import REPORT, ROTATION_OFF

    for each in every:
        rotated = each.all("AWS::SecretsManager::RotationSchedule").values()
        secrets = [json.dumps(schedule["Properties"]["SecretId"]) for schedule in rotated]
        watched = [metric for metric in metrics(each) if metric.name == ROTATION_OFF]
        assert len(watched) == len(secrets)
        rules = each.resources("Database", "AWS::Events::Rule").values() if secrets else ()
        events = [
            json.dumps(target["Input"])
            for rule in rules
            for target in rule["Properties"]["Targets"]
        ]
        assert {rule["Properties"]["ScheduleExpression"] for rule in rules} <= {"rate(1 hour)"}
        for metric in watched:
            assert set(metric.dimensions) == {"Secret"}
            secret = json.dumps(published(each, metric.stack, metric.dimensions["Secret"]))
            secrets.remove(secret)
            (event,) = (one for one in events if secret in one)
            assert REPORT in event
            alarm = each.templates[metric.stack]["Resources"][metric.owner]["Properties"]
            seconds = alarm.get("Period") or alarm["Metrics"][0]["MetricStat"]["Period"]
            assert (seconds, alarm["EvaluationPeriods"]) == (3600, 1)
        assert not secrets


def test_names_that_rds_stores_in_lower_case_are_sent_so(every: list[Stage]) -> None:
    """Ref returns what was sent, and metrics have what is stored."""
    for each in every:
        for kind, name in LOWER.items():
            for logical, resource in each.all(kind).items():
                given = resource["Properties"].get(name)
                if isinstance(given, str):
                    assert given == given.lower(), logical
        for logical, proxy in each.all("AWS::RDS::DBProxy").items():
            given = proxy["Properties"]["DBProxyName"]
            # The name that CDK made up before is another one: two at once would clash.
            assert given == "lambda-pg-dev-pooler", logical


WITH_ADDRESS = ("instance-pgbouncer-bastion-endpoints-email-with-sql", "prod")
"""What has an address for its alarms: a combination of the stage `dev`, and `prod`."""

PUBLISHERS = {ALARM: "cloudwatch.amazonaws.com"}
"""Who publishes for a resource that names a topic.
https://repost.aws/knowledge-center/cloudwatch-receive-sns-for-alarm-trigger"""

NOT_PUBLISHING = {"AWS::SNS::Subscription", "AWS::SNS::TopicPolicy"}


@pytest.mark.parametrize("name", WITH_ADDRESS)
def test_each_service_that_uses_the_topic_may_publish_to_it(
    apps: Mapping[str, Stage], name: str
) -> None:
    """Its policy names the service of each resource that names the topic, for this account only."""
    stage = apps[name]
    resources = stage.templates["Observability"]["Resources"]
    (topic,) = stage.resources("Observability", "AWS::SNS::Topic")
    users = {
        resource["Type"]
        for resource in resources.values()
        if json.dumps({"Ref": topic}) in json.dumps(resource["Properties"])
    } - NOT_PUBLISHING
    assert users == {ALARM}
    allowed = publishers(stage, topic)
    assert {PUBLISHERS[kind] for kind in users} == set(allowed)
    for service, condition in allowed.items():
        assert condition == {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}}, (
            service
        )
    for logical, alarm in stage.resources("Observability", ALARM).items():
        assert alarm["Properties"]["AlarmActions"] == [{"Ref": topic}], logical
        assert alarm["Properties"]["ActionsEnabled"] is True, logical


def test_a_protected_stage_without_an_address_is_refused(
    stages: Mapping[str, Stage], tmp_path: Path
) -> None:
    """Nobody would learn of its alarms; one that may be removed needs none."""
    from aws_cdk import App

    from lambda_pg_cdk import AppError
    from lambda_pg_cdk import Stage as AppStage

    context = json.loads(CDK_JSON.read_text())["context"]

    def build_with(stage: str, **override: Any) -> None:
        chosen = {**context, "stage": stage, "override": json.dumps(override)}
        AppStage(App(outdir=str(tmp_path), context=chosen)).check()

    with pytest.raises(AppError) as refused:
        build_with("prod")
    assert "observability.email is null; must be set when termination_protection" in str(
        refused.value
    )
    assert "Set an address" in str(refused.value)
    with pytest.raises(AppError, match=r"observability\.email is null"):
        build_with("dev", termination_protection=True)
    assert not stages["dev"].all("AWS::SNS::Topic")  # it is built without an address
    (address,) = stages["prod"].all("AWS::SNS::Subscription").values()
    assert address["Properties"]["Endpoint"] == NO_ADDRESS


def publishers(stage: Stage, topic: str) -> dict[str, Any]:
    """Read which services a topic's policy lets publish, and on what condition."""
    return {
        statement["Principal"]["Service"]: statement.get("Condition")
        for policy in stage.resources("Observability", "AWS::SNS::TopicPolicy").values()
        for statement in policy["Properties"]["PolicyDocument"]["Statement"]
        if policy["Properties"]["Topics"] == [{"Ref": topic}]
        and statement["Effect"] == "Allow"
        and statement["Action"] == "sns:Publish"
        and statement["Resource"] == {"Ref": topic}
    }


@pytest.mark.parametrize("name", WITH_ADDRESS)
def test_a_topic_without_a_key_of_its_own_needs_no_permission_of_a_key(
    apps: Mapping[str, Stage], name: str
) -> None:
    """With a customer's key CloudWatch would have to be allowed to use that, too."""
    (topic,) = apps[name].all("AWS::SNS::Topic").values()
    assert "KmsMasterKeyId" not in topic["Properties"]
