"""What alarms and scaling watch: names, dimensions, statistics, periods, and the case of names."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from lambda_pg_cdk.pgbouncer.metrics import UNITS
from tests.synth.walk import pages
from tests.synth.walk.deployed import Deployed, Resource, labels, matches
from tests.synth.walk.pages import LOOK_IT_UP, PERIOD, Metric

GRAPH_PERIOD = 300
"""Seconds that a line of a dashboard adds up where it says nothing."""

OWN = "LambdaPg"
"""Namespace of the metrics that the supervisors write; their page is `pgbouncer/metrics.py`."""


COUNTED = "LambdaPg/"
"""Beginning of the namespaces of metrics that CloudWatch counts in a log."""


def metrics(app: Deployed) -> Iterator[str]:
    """Check each metric that something acts on: name, dimensions, statistic and period."""
    for resource, asked in _asked(app):
        yield from _metric(app, resource, asked)
    for policy in app.of_kind("AWS::ApplicationAutoScaling::ScalingPolicy"):
        for name in app.texts(policy, f"{_TRACKING}.PredefinedMetricSpecification.{_TYPE}"):
            if name not in pages.PREDEFINED_METRICS:
                yield f"{policy}: predefined metric {name} is not known: {LOOK_IT_UP}"


def shown(app: Deployed) -> Iterator[str]:
    """Check that the dashboards show metrics that there are: a wrong one is an empty graph."""
    for board in app.of_kind("AWS::CloudWatch::Dashboard"):
        (body,) = app.texts(board, "DashboardBody")
        for widget in json.loads(body)["widgets"]:
            for line in widget["properties"].get("metrics", []):
                if isinstance(line[0], str):  # else it is an expression of others
                    yield from _line(app, board, Asked(app, board.stack, _of_line(line)))


def _of_line(line: list[Any]) -> dict[str, Any]:
    """Write a line of a graph as alarms write metrics: names and values take turns in it."""
    options = line[-1] if isinstance(line[-1], Mapping) else {}
    texts = [each for each in line if isinstance(each, str)]
    return {
        "Namespace": texts[0],
        "MetricName": texts[1],
        "Dimensions": [
            {"Name": name, "Value": value}
            for name, value in zip(texts[2::2], texts[3::2], strict=True)
        ],
        "Statistic": options.get("stat", "Average"),
        "Period": options.get("period", GRAPH_PERIOD),
    }


def cases(app: Deployed) -> Iterator[str]:
    """Check that names which a service stores in lower case are watched in lower case."""
    for resource, asked in _asked(app):
        for name, value in asked.dimensions.items():
            row = pages.DIMENSIONS.get((asked.namespace, name))
            if row is None or row.lower is None:
                continue
            for stored in _stored(app, value, row.lower):
                if stored != stored.lower():
                    yield (
                        f"{resource}: {asked.namespace} {asked.name} is watched for {name} ="
                        f" {stored}, which is stored as {stored.lower()}: {row.page}"
                    )


def _stored(app: Deployed, value: str, name: str) -> list[str]:
    """Say by which names resources are created; a value without any resource is a name itself."""
    found = [app.by_label[each] for each in labels(value)]
    return [text for each in found for text in app.texts(each, name)] if found else [value]


_TRACKING = "TargetTrackingScalingPolicyConfiguration"
_TYPE = "PredefinedMetricType"


class Asked:
    """A metric as a template asks for it."""

    def __init__(self, app: Deployed, stack: str, metric: Mapping[str, Any]) -> None:
        """Read what an alarm, a scaling policy or a part of an alarm's expression says."""
        self.namespace = app.text(stack, metric["Namespace"])
        self.name = app.text(stack, metric["MetricName"])
        self.dimensions = {
            app.text(stack, each["Name"]): app.text(stack, each["Value"])
            for each in metric.get("Dimensions", [])
        }
        self.statistic = str(
            metric.get("Stat") or metric.get("Statistic") or metric.get("ExtendedStatistic")
        )
        self.period = int(metric.get("Period", PERIOD))

    def __str__(self) -> str:
        """Say it shortly."""
        return f"{self.namespace} {self.name} by {', '.join(sorted(self.dimensions)) or 'nothing'}"


def _asked(app: Deployed) -> Iterator[tuple[Resource, Asked]]:
    """Yield each metric of alarms and of scaling policies."""
    for alarm in app.of_kind("AWS::CloudWatch::Alarm"):
        if "MetricName" in alarm.properties:
            yield alarm, Asked(app, alarm.stack, alarm.properties)
        for part in alarm.properties.get("Metrics", []):
            if "MetricStat" in part:
                asked = part["MetricStat"]
                yield alarm, Asked(app, alarm.stack, {**asked, **asked["Metric"]})
    for policy in app.of_kind("AWS::ApplicationAutoScaling::ScalingPolicy"):
        tracked = policy.properties.get(_TRACKING, {})
        if "CustomizedMetricSpecification" in tracked:
            yield policy, Asked(app, policy.stack, tracked["CustomizedMetricSpecification"])


def _counted(app: Deployed, resource: Resource, asked: Asked) -> Iterator[str]:
    """Check a metric that a filter of the same app counts, without dimensions."""
    counted = {
        (
            app.text(each.stack, metric["MetricNamespace"]),
            app.text(each.stack, metric["MetricName"]),
        )
        for each in app.of_kind("AWS::Logs::MetricFilter")
        for metric in each.properties["MetricTransformations"]
    }
    if (asked.namespace, asked.name) not in counted or asked.dimensions:
        yield f"{resource}: no metric filter counts {asked}"
    elif asked.statistic != "Sum":
        yield f"{resource}: {asked} is counted, so its statistic is Sum, not {asked.statistic}"


def _metric(app: Deployed, resource: Resource, asked: Asked) -> Iterator[str]:
    if asked.namespace == OWN:
        yield from _own_metric(app, resource, asked)
        return
    if asked.namespace.startswith(COUNTED):
        yield from _counted(app, resource, asked)
        return
    rows = [
        each
        for each in pages.METRICS
        if (each.namespace, each.name) == (asked.namespace, asked.name)
    ]
    if not rows:
        yield f"{resource}: metric {asked.namespace} {asked.name} is not known: {LOOK_IT_UP}"
        return
    fitting = [each for each in rows if each.dimensions == set(asked.dimensions)]
    if not fitting:
        known = " or ".join(", ".join(sorted(each.dimensions)) for each in rows)
        yield f"{resource}: {asked}; it is published by {known}: {rows[0].page}"
        return
    yield from _reading(resource, asked, fitting[0])
    yield from _values(resource, asked)


def _line(app: Deployed, board: Resource, asked: Asked) -> Iterator[str]:
    if asked.namespace == OWN:
        yield from _own_metric(app, board, asked)
        return
    if asked.namespace.startswith(COUNTED):
        yield from _counted(app, board, asked)
        return
    key = (asked.namespace, asked.name, frozenset(asked.dimensions))
    rows = {
        (each.namespace, each.name, each.dimensions): each
        for each in (*pages.METRICS, *pages.SHOWN)
    }
    row = rows.get(key)
    if row is None:
        yield f"{board}: no page has {asked}: {LOOK_IT_UP}"
        return
    if row.only_period is not None and asked.period != row.only_period:
        yield f"{board}: {asked} is valid over {row.only_period} s only: {row.page}"
    yield from _values(board, asked)


def _values(resource: Resource, asked: Asked) -> Iterator[str]:
    for name, value in asked.dimensions.items():
        row = pages.DIMENSIONS[asked.namespace, name]
        is_name = row.lower is not None and not labels(value)
        if not is_name and not matches(row.value, value):
            yield f"{resource}: {asked}; {name} is {value}, not {row.value}: {row.page}"


def _reading(resource: Resource, asked: Asked, row: Metric) -> Iterator[str]:
    """Check the statistic and the period of a metric."""
    if not any(matches(each, asked.statistic) for each in row.statistics):
        useful = ", ".join(row.statistics)
        yield f"{resource}: {asked}; its {asked.statistic} says little, use {useful}: {row.page}"
    if asked.period % PERIOD or asked.period < PERIOD:
        yield f"{resource}: {asked} comes every {PERIOD} s, not {asked.period}: {row.page}"
    if row.only_period is not None and asked.period != row.only_period:
        yield f"{resource}: {asked} is valid over {row.only_period} s only: {row.page}"


def _own_metric(app: Deployed, resource: Resource, asked: Asked) -> Iterator[str]:
    """Check a metric of ours against what the supervisor writes and what its task is set to."""
    from lambda_pg_cdk.stacks.database import ROTATION_OFF

    if asked.name == ROTATION_OFF:
        yield from _rotation_metric(app, resource, asked)
        return
    if asked.name not in UNITS:
        yield f"{resource}: {asked}; pgbouncer/metrics.py writes no {asked.name}"
    told = {
        (each["Name"], app.text(task.stack, each["Value"]))
        for task in app.of_kind("AWS::ECS::TaskDefinition")
        for container in task.properties["ContainerDefinitions"]
        for each in container["Environment"]
    }
    if ("METRICS_NAMESPACE", asked.namespace) not in told:
        yield f"{resource}: {asked}; no task writes to this namespace"
    pooler = asked.dimensions.get("Pooler", "")
    if set(asked.dimensions) != {"Pooler"} or ("METRICS_POOLER", pooler) not in told:
        yield f"{resource}: {asked}; a task writes by Pooler = its METRICS_POOLER alone"


def _rotation_metric(app: Deployed, resource: Resource, asked: Asked) -> Iterator[str]:
    """Check what the function `rotate` writes against the secret that it is asked to look at."""
    from lambda_pg_cdk.stacks.database import REPORT

    events = [
        json.loads(app.text(rule.stack, target["Input"]))
        for rule in app.of_kind("AWS::Events::Rule")
        for target in rule.properties["Targets"]
        if "Input" in target
    ]
    secrets = [event["SecretId"] for event in events if event.get("Step") == REPORT]
    if set(asked.dimensions) != {"Secret"} or asked.dimensions["Secret"] not in secrets:
        yield f"{resource}: {asked}; rotate writes it by Secret, of {', '.join(secrets) or 'none'}"
