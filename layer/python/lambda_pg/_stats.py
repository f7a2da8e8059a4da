"""Counters of one Database, in the names of psycopg_pool where it has one."""

import json
import time
from dataclasses import asdict, dataclass

NAMESPACE = "LambdaPg"

METRICS = {
    "requests_num": ("Checkouts", "Count"),
    "requests_queued": ("Waits", "Count"),
    "requests_errors": ("CheckoutErrors", "Count"),
    "connections_num": ("Connects", "Count"),
    "connections_ms": ("ConnectTime", "Milliseconds"),
    "connections_lost": ("ConnectionsLost", "Count"),
    "retries": ("Retries", "Count"),
    "refreshes": ("Refreshes", "Count"),
    "deadline_cancels": ("DeadlineCancels", "Count"),
    "leaks": ("Leaks", "Count"),
}
"""What goes to CloudWatch: the counter, the metric's name and its unit."""


@dataclass
class Stats:
    """Counts since the environment began; times are milliseconds."""

    requests_num: int = 0
    """Checkouts."""
    requests_queued: int = 0
    """Checkouts that waited for a slot."""
    requests_wait_ms: float = 0
    """Time spent waiting for a slot."""
    requests_errors: int = 0
    """Checkouts that failed."""
    returns_bad: int = 0
    """Connections that came back unusable."""
    connections_num: int = 0
    """Attempts to connect."""
    connections_ms: float = 0
    """Time spent connecting."""
    connections_errors: int = 0
    """Attempts to connect that failed."""
    connections_lost: int = 0
    """Connections found dead at a checkout."""
    retries: int = 0
    """Attempts after a first one."""
    deadline_cancels: int = 0
    """Statements ended by a deadline."""
    leaks: int = 0
    """Connections and transactions that a handler left open."""

    def counters(self) -> dict[str, int]:
        """Return the counts, times rounded to whole milliseconds."""
        return {name: round(value) for name, value in asdict(self).items()}


class MetricLines:
    """Lines in CloudWatch's embedded metric format: what an invocation added to the counters."""

    def __init__(self, function: str) -> None:
        """Name the function, the one dimension."""
        self._function = function
        self._before: dict[str, int] = {}

    def line(self, counters: dict[str, int], request_id: str) -> str | None:
        """Return one line of JSON, or None when nothing was counted."""
        values = {
            metric: counters[name] - self._before.get(name, 0)
            for name, (metric, _) in METRICS.items()
        }
        self._before = counters
        values = {metric: value for metric, value in values.items() if value > 0}
        if not values:
            return None
        units = dict(METRICS.values())
        directive = {
            "Namespace": NAMESPACE,
            "Dimensions": [["FunctionName"]],
            "Metrics": [{"Name": metric, "Unit": units[metric]} for metric in values],
        }
        aws = {"Timestamp": int(time.time() * 1000), "CloudWatchMetrics": [directive]}
        labels = {"FunctionName": self._function, "AwsRequestId": request_id}
        return json.dumps({"_aws": aws, **labels, **values})
