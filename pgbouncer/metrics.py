"""Numbers of the pooler for CloudWatch, as lines of JSON in its embedded metric format.

They reach CloudWatch with the container's log: no call, no permission, no agent.
"""

import json
import re
import threading
from collections.abc import Iterable, Mapping

from .session import Row, Session, SessionError
from .settings import MetricsSettings, Settings

# How long PgBouncer may take to answer: the supervisor waits for it and does nothing else.
CONSOLE_SECONDS = 1.0
# What PgBouncer puts in front of a line that goes on with the message of the line before: only a
# client's own text (its user, its database) has line breaks.
CONTINUED = b"\t"
# Lines that PgBouncer writes when it rejects a client. A client's text may be anywhere in a
# line, so all of it has to fit; only what has no space can be "database/user@address:port".
REJECTED = rb"^[^\[]*\[\d+\] WARNING C-\w+: \S+ pooler error: "
COUNTED = {
    "RefusedConnections": re.compile(
        REJECTED + rb"(no more connections allowed|client connections exceeded)[^:]*$"
    ),
    "QueueTimeouts": re.compile(REJECTED + rb"query_wait_timeout\s*$"),
    # A client's text may be anywhere: a client that writes this text as its name has not logged in.
    "FailedLogins": re.compile(
        rb"^[^\[]*\[\d+\] WARNING C-\w+: .* pooler error: "
        rb"(SASL authentication failed|no authentication method is found|login rejected)\s*$"
    ),
}
# The database in such a line; "(nodb)" before PgBouncer knows it.
DATABASE = re.compile(rb"^[^\[]*\[\d+\] WARNING C-\w+: ([^/\s]+)/")
# Server connections that wait for a client; PgBouncer calls those used that it checks before,
# because they have been idle for long. Both stay until server_idle_timeout.
IDLE = ("sv_idle", "sv_used")
UNITS = {
    "ClientConnections": "Count",
    "ClientsWaiting": "Count",
    "MaxWait": "Seconds",
    "ServerConnections": "Count",
    "ServerConnectionsUsed": "Percent",
    "QueueTime": "Milliseconds",
    "Queries": "Count",
    "Transactions": "Count",
    "RefusedConnections": "Count",
    "QueueTimeouts": "Count",
    "FailedLogins": "Count",
    "UnreadableSecrets": "Count",
    "CertificateDays": "Count",
}

Numbers = dict[str, float]


class Tally:
    """Counts events that are in PgBouncer's log but not in its console. Thread-safe."""

    def __init__(self, database: str, *others: str) -> None:
        """Start with zero, for each name of the database; the first has what belongs to none."""
        self._lock = threading.Lock()
        self._databases = (database, *others)
        self._counts = self._zeros()
        self._last = b""

    def note(self, line: bytes) -> None:
        """Count the line before, now that it is known to have been a whole message."""
        with self._lock:
            if line.startswith(CONTINUED):
                self._last = b""
            else:
                self._count_last()
                self._last = line

    def take(self) -> dict[str, Numbers]:
        """Return the counts of each name of the database since the last time."""
        with self._lock:
            self._count_last()
            counts, self._counts = self._counts, self._zeros()
        return counts

    def _count_last(self) -> None:
        line, self._last = self._last, b""
        counts = self._counts.get(database_in(line), self._counts[self._databases[0]])
        for name, pattern in COUNTED.items():
            if pattern.search(line):
                counts[name] += 1

    def _zeros(self) -> dict[str, Numbers]:
        return {database: dict.fromkeys(COUNTED, 0) for database in self._databases}


def database_in(line: bytes) -> str:
    """Return the name of the database in a line of PgBouncer's log; nothing where it has none."""
    found = DATABASE.search(line)
    return found[1].decode(errors="replace") if found else ""


class Metrics:
    """Asks PgBouncer's console; keeps the totals for comparison with the next answer."""

    def __init__(self, settings: Settings, observer: str, tally: Tally) -> None:
        """Keep the console's user that can read; nothing is asked yet."""
        self._settings = settings
        self._observer = observer
        self._tally = tally
        self._totals: dict[str, Numbers] = {}

    def measure(self) -> dict[str, Numbers]:
        """Return the numbers of each name of the database since the last answer.

        Raise SessionError if there is no answer.
        """
        pool_sizes, (pools, stats) = self._settings.pool_sizes, self._ask()
        try:
            levels = {
                name: levels_of(rows_of(name, pools), pool_sizes[name]) for name in pool_sizes
            }
            totals = {name: totals_of(rows_of(name, stats)) for name in pool_sizes}
        except (KeyError, TypeError, ValueError) as error:
            raise SessionError(f"the console's answer is unusable: {error!r}") from error
        before, self._totals = self._totals, totals
        counts = self._tally.take()
        return {
            name: levels[name] | rates_of(totals[name], before.get(name, {})) | counts[name]
            for name in pool_sizes
        }

    def _ask(self) -> tuple[list[Row], list[Row]]:
        """Ask for the rows of all databases."""
        settings = self._settings
        with Session(
            settings.socket, self._observer, "pgbouncer", purpose="metrics", seconds=CONSOLE_SECONDS
        ) as console:
            return console.query("SHOW POOLS"), console.query("SHOW STATS")


def rows_of(database: str, rows: Iterable[Row]) -> list[Row]:
    """Take the rows of one database, without those of the console itself."""
    return [row for row in rows if row.get("database") == database]


def levels_of(pools: Iterable[Row], pool_size: int) -> Numbers:
    """Take the numbers of this moment out of SHOW POOLS: one row for each user."""
    clients = waiting = servers = busiest = longest = 0.0
    for row in pools:
        clients += _number(row, "cl_active") + _number(row, "cl_waiting")
        waiting += _number(row, "cl_waiting")
        opened = sum(_number(row, name) for name in row if name.startswith("sv_"))
        servers += opened
        busiest = max(busiest, opened - sum(_number(row, name) for name in IDLE))
        longest = max(longest, _number(row, "maxwait") + _number(row, "maxwait_us") / 1e6)
    return {
        "ClientConnections": clients,
        "ClientsWaiting": waiting,
        "MaxWait": longest,
        "ServerConnections": servers,
        "ServerConnectionsUsed": 100 * busiest / pool_size,
    }


def totals_of(stats: Iterable[Row]) -> Numbers:
    """Take what PgBouncer has counted since its start out of SHOW STATS."""
    names = ("total_query_count", "total_xact_count", "total_wait_time")
    rows = list(stats)
    return {name: sum(_number(row, name) for row in rows) for name in names}


def rates_of(totals: Mapping[str, float], before: Mapping[str, float]) -> Numbers:
    """Compare two answers. Without a query in between there is no average of their waits."""
    # A pool that PgBouncer has dropped takes what it had counted along.
    grown = {name: max(total - before.get(name, 0), 0) for name, total in totals.items()}
    queries, waited = grown["total_query_count"], grown["total_wait_time"]
    rates = {"Queries": queries, "Transactions": grown["total_xact_count"]}
    return rates | ({"QueueTime": waited / queries / 1000} if queries else {})


def _number(row: Row, name: str) -> float:
    value = row[name]
    if value is None:
        raise ValueError(f"{name} is NULL")
    return float(value)


def render(
    numbers: Mapping[str, float], settings: MetricsSettings, moment: float, database: str = ""
) -> str:
    """Render one line in CloudWatch's embedded metric format; `moment` is in seconds.

    The numbers of the database's second name have one dimension more, and so are metrics apart.
    """
    dimensions = {"Pooler": settings.pooler} | ({"Database": database} if database else {})
    declared = [{"Name": name, "Unit": UNITS[name]} for name in numbers]
    directive = {
        "Namespace": settings.namespace,
        "Dimensions": [list(dimensions)],
        "Metrics": declared,
    }
    head = {"Timestamp": int(moment * 1000), "CloudWatchMetrics": [directive]}
    values = {name: round(value, 3) for name, value in numbers.items()}
    return json.dumps({"_aws": head} | dimensions | values, allow_nan=False)
