"""Counters of one Database, in the names of psycopg_pool where it has one."""

import json
import time

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
"""What CloudWatch gets: the counter, the metric's name and its unit."""


class Stats:
    """Counts since the environment began; times are milliseconds."""

    def __init__(self) -> None:
        """Start at zero."""
        self.requests_num = 0
        """Checkouts, those that failed too; a request with retries counts once."""
        self.requests_queued = 0
        """Checkouts that waited for a slot."""
        self.requests_wait_ms = 0.0
        """Time spent waiting for a slot."""
        self.requests_errors = 0
        """Checkouts that failed."""
        self.returns_bad = 0
        """Connections that were returned unusable."""
        self.connections_num = 0
        """Attempts to connect."""
        self.connections_ms = 0.0
        """Time spent connecting."""
        self.connections_errors = 0
        """Attempts to connect that failed."""
        self.connections_lost = 0
        """Connections found dead at a checkout."""
        self.retries = 0
        """Attempts after a first one."""
        self.deadline_cancels = 0
        """Statements ended by a deadline."""
        self.leaks = 0
        """Connections and transactions that a handler left open."""

    def counters(self) -> dict[str, int]:
        """Return the counts, times rounded to whole milliseconds."""
        return {name: round(value) for name, value in vars(self).items()}


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
