"""Prove that all connections that can exist fit into the database and into the pooler.

Pure arithmetic over a stage's settings and the functions attached to it. Three sums: the server
connections that can exist at the same moment against `max_connections`, the client connections
against what the pooler accepts, and the time in which all new environments log in against the
checkout timeout. The baseline function is in none of them: it is the control of the storm, and
shows what a function without a budget does.
"""

import bisect
import enum
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from lambda_pg_cdk.stage.capacity import RESERVED, max_connections, most_connections
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.consistency import most_checkout
from lambda_pg_cdk.stage.limits import TASK_MEMORY
from lambda_pg_cdk.stage.messages import problem

MIGRATIONS = 2
"""A running migration, and one that waits for its lock."""

ROTATION = 2
"""The owner's connection, and the login that the rotation tests."""

HEALTH_CONCURRENCY = 5
"""Environments reserved for health checks, where anything is reserved."""

NOTES_CONCURRENCY = 5
"""Environments reserved for the second sample, where anything is reserved."""

PROXY = 2
"""Connections of RDS Proxy's own user, rdsproxyadmin."""

TURNOVER = 2
"""Environments of the previous version keep their connections until Lambda ends them."""

LOGIN_MILLISECONDS = 1.4
"""Processor milliseconds that a login costs PgBouncer 1.26.1, TLS handshake included, measured by
`make bench` on a core of an AMD EPYC. No Fargate vCPU was measured. PgBouncer 1.24 hashes 4,096
rounds in each login and needs five times as much."""

WHOLE_CORE = 1024
"""pgbouncer.cpu of one whole core; a smaller task gets a part of the core's time."""

SCALING = 1000
SCALING_SECONDS = 10
"""New environments that Lambda starts for each function, and in how many seconds (AWS, "Lambda
scaling behavior"). The page does not say whether the next ones start gradually or together after
these seconds. The budget assumes gradually: then more of them start during the first logins."""

SPREAD = 4
"""Standard deviations by which the busiest task may have more logins than the average: a load
balancer chooses a task by a hash of the flow. A task exceeds this once in 30,000 storms."""


class Cap(enum.Enum):
    """Caps of a function that are not a number."""

    POOLER_LIMIT = "no reservation: the pooler rejects clients over its limit"


class BudgetError(ValueError):
    """A limit can be exceeded; the message has the arithmetic and the smallest change that fits."""


@dataclass(frozen=True)
class Client:
    """A function that connects through the pooler, and what it can open.

    `concurrency` is its reserved concurrency, or `Cap.POOLER_LIMIT`. An environment has `processes`
    processes (more than one with Managed Instances), and each has a pool of `slots` slots.
    """

    name: str
    concurrency: int | Cap
    slots: int = 1
    processes: int = 1

    @property
    def connections(self) -> int:
        """Client connections that can exist during a deployment; 0 without a reservation."""
        if isinstance(self.concurrency, Cap):
            return 0
        return self.concurrency * self.processes * self.slots * TURNOVER

    def describe(self) -> str:
        """Write the factors of the connections."""
        if isinstance(self.concurrency, Cap):
            return f"{self.name}: no reservation, uses the remaining connections, then answers 503"
        return (
            f"{self.name}: {self.concurrency} environments x {self.processes} processes x "
            f"{self.slots} slots x {TURNOVER} versions during a deployment"
        )

    def new_at_once(self, seconds: int) -> int:
        """Count the environments that can start within the seconds of a checkout timeout.

        A deployment does not double them: those of the previous version have logged in already.
        """
        most = SCALING + math.ceil(SCALING * seconds / SCALING_SECONDS)
        return most if isinstance(self.concurrency, Cap) else min(self.concurrency, most)

    def logins(self, seconds: int) -> "Line":
        """Count the logins of new environments, and write the factors."""
        new = self.new_at_once(seconds)
        free = "no reservation, " if isinstance(self.concurrency, Cap) else ""
        return Line(
            f"{self.name}: {free}{new} new environments x {self.processes} processes x "
            f"{self.slots} slots",
            new * self.processes * self.slots,
        )


@dataclass(frozen=True)
class Line:
    """One group of connections."""

    what: str
    connections: int


@dataclass(frozen=True)
class Sum:
    """Connections of one kind that can exist at the same moment, and their limit."""

    kind: str
    lines: tuple[Line, ...]
    limit: int
    limit_name: str

    @property
    def total(self) -> int:
        """Add all lines up."""
        return sum(line.connections for line in self.lines)

    @property
    def fits(self) -> bool:
        """Tell whether the limit holds."""
        return self.total <= self.limit

    @property
    def excess(self) -> str:
        """Say how many can exist, and the limit."""
        kinds, most = f"{self.kind}s that can exist", f"{self.limit} ({self.limit_name})"
        return problem(f"the number of {kinds}", self.total, f"be at most {most}")

    def explain(self) -> str:
        """Write the arithmetic, one line for each group."""
        limit = Line(self.limit_name, self.limit)
        return _rows(*self.lines, Line("total", self.total), limit)


@dataclass(frozen=True)
class LoginStorm:
    """Logins that new environments can start at the same moment, and the time that they take.

    `tasks` of PgBouncer share them, each with `cpu` / 1024 of a core; `timeout` is in seconds.
    """

    lines: tuple[Line, ...]
    tasks: int
    cpu: int
    timeout: int
    kind: str = "login"

    @property
    def total(self) -> int:
        """Add all lines up."""
        return sum(line.connections for line in self.lines)

    @property
    def busiest(self) -> int:
        """Count the logins of the busiest task."""
        share = self.total / self.tasks
        spread = SPREAD * math.sqrt(share * (1 - 1 / self.tasks))
        return min(self.total, math.ceil(share + spread))

    @property
    def milliseconds(self) -> int:
        """Return the time until the last login has ended."""
        return math.ceil(self.busiest * LOGIN_MILLISECONDS * WHOLE_CORE / self.cpu)

    @property
    def fits(self) -> bool:
        """Tell whether the last login ends within the checkout timeout."""
        return self.milliseconds <= self.timeout * 1000

    @property
    def excess(self) -> str:
        """Say how long the logins take, and the timeout."""
        seconds = round(self.milliseconds / 1000, 1)
        most = f"{self.timeout} seconds (functions.checkout_timeout)"
        name = "the time for all logins that can start at once"
        return problem(name, seconds, f"be at most {most}")

    def explain(self) -> str:
        """Write the arithmetic, one line for each step."""
        return _rows(
            *self.lines,
            Line("total", self.total),
            Line(f"on the busiest of {self.tasks} tasks, while one is down", self.busiest),
            Line(
                f"milliseconds for these: {LOGIN_MILLISECONDS} ms of a core each,"
                f" pgbouncer.cpu is {self.cpu} of {WHOLE_CORE}",
                self.milliseconds,
            ),
            Line("functions.checkout_timeout in milliseconds", self.timeout * 1000),
        )


def _rows(*lines: Line) -> str:
    return "\n".join(f"  {line.connections:>6}  {line.what}" for line in lines)


@dataclass(frozen=True)
class Budget:
    """The sums of a stage."""

    config: Config
    clients: tuple[Client, ...]
    sums: tuple[Sum | LoginStorm, ...]
    add_up: Callable[[Config, Sequence[Client]], "Budget"]

    @property
    def fits(self) -> bool:
        """Tell whether every limit holds."""
        return all(each.fits for each in self.sums)

    def explain(self) -> str:
        """Write the arithmetic of every sum."""
        return "\n\n".join(f"{each.kind}s\n{each.explain()}" for each in self.sums)

    def check(self) -> None:
        """Raise `BudgetError` when a limit could be exceeded."""
        for each in self.sums:
            if not each.fits:
                raise BudgetError(
                    f"stage {self.config.stage!r}: {each.excess}:\n{each.explain()}\n"
                    f"{self._advice()}"
                )

    def _advice(self) -> str:
        found = [text for _, text in sorted(self._remedies())]
        if not found:
            return "No single change fits: lower the concurrency, the tasks and the pools."
        return "The smallest change that fits: " + "; or ".join(found) + "."

    def _fixes(self, change: "_Change") -> Callable[[int], bool]:
        """Make a test of a value: whether the sums that do not fit now would fit with it."""
        failed = [number for number, each in enumerate(self.sums) if not each.fits]

        def fits(value: int) -> bool:
            sums = self.add_up(*change(value)).sums
            return all(sums[number].fits for number in failed)

        return fits

    def _remedies(self) -> Iterator[tuple[float, str]]:
        """Yield the nearest value of each setting with which everything fits, and its distance.

        A larger change is more likely to break another sum, so only the nearest value that fixes
        the failed sums is tried.
        """
        for name, current, values, change in _candidates(self.config, self.clients):
            first = _first(values, self._fixes(change))
            if first < len(values) and self.add_up(*change(values[first])).fits:
                distance = abs(values[first] - current) / max(current, 1)
                yield distance, f"set {name} to {values[first]} (now {current})"


def _first(values: Sequence[int], fits: Callable[[int], bool]) -> int:
    """Return the index of the first value that fits, or the length; all values after it fit too."""
    return bisect.bisect_left(values, True, key=fits)


def budget_of(config: Config, clients: Iterable[Client] = ()) -> Budget:
    """Add up the connections that a stage and the functions attached to it can open."""
    attached = tuple(clients)
    sums = [*_server_sums(config), *_client_sums(config, attached)]
    return Budget(config, attached, tuple(sums), budget_of)


def allowance_of(config: Config, clients: Iterable[Client]) -> Budget:
    """Compare the functions that another app attaches with functions.other_clients.

    RDS Proxy has no client limit, so there is nothing to compare with.
    """
    attached = tuple(clients)
    if config.pooler == "rds-proxy":
        return Budget(config, attached, (), allowance_of)
    lines = tuple(Line(client.describe(), client.connections) for client in attached)
    limit = config.functions.other_clients
    allowed = Sum("client connection", lines, limit, "functions.other_clients of the stage")
    return Budget(config, attached, (allowed,), allowance_of)


def rolling_tasks(tasks: int, maximum_percent: int) -> int:
    """Count the tasks that ECS may run at once: it rounds the upper limit down."""
    return max(tasks, math.floor(tasks * maximum_percent / 100))


def remaining_tasks(tasks: int) -> int:
    """Count the tasks that serve while one of them, or its zone, is down."""
    return max(1, tasks - 1)


# Server connections


def _server_sums(config: Config) -> Iterator[Sum]:
    if config.pooler == "external":
        return  # only its owner knows its server connections
    limit, source = max_connections(config)
    pooler = _pgbouncer_line if config.pooler == "pgbouncer" else _proxy_line
    lines = [
        pooler(config, limit),
        *_sql_lines(config),
        Line("migrations, over the direct URL", MIGRATIONS),
        *_rotation_lines(config),
        *([Line("RDS Proxy itself", PROXY)] if config.pooler == "rds-proxy" else []),
        Line("administrators", config.database.other_connections),
        Line("reserved by PostgreSQL and RDS for superusers", RESERVED),
    ]
    yield Sum("server connection", tuple(lines), limit, source)


def most_tasks(config: Config) -> int:
    """Count the tasks of PgBouncer that can have server connections at the same time."""
    settings = config.pgbouncer
    return rolling_tasks(settings.max_tasks, settings.maximum_percent) + settings.max_tasks


def login_limit(config: Config) -> int:
    """Return the CONNECTION LIMIT of each application user in PostgreSQL; -1 is no limit.

    PgBouncer drops a server connection when its client vanishes, and may open the next one while
    the backend still works. PostgreSQL counts that backend too. The limits of all users together
    do not exceed PgBouncer's line of the budget. The control of the storm has no budget, so a stage
    with it has no limit.
    """
    if config.pooler != "pgbouncer" or config.baseline:
        return -1
    return most_tasks(config) * config.pool_size


def _rotation_lines(config: Config) -> Iterator[Line]:
    """Count the rotations that can run at the same time: one for each secret."""
    if config.by_token:
        return
    yield Line("a rotation", ROTATION)
    if config.sql.enabled:
        roles = len(config.sql.roles)
        yield Line(f"rotations of /sql's trust levels: {roles} x {ROTATION}", roles * ROTATION)


def sql_login_limit(config: Config) -> int:
    """Return the CONNECTION LIMIT of each user of `/sql`, as `login_limit`; -1 is no limit."""
    return most_tasks(config) * config.sql_pool_size if config.pooler == "pgbouncer" else -1


def _pgbouncer_line(config: Config, _limit: int) -> Line:
    settings = config.pgbouncer
    draining, tasks = settings.max_tasks, most_tasks(config)
    return Line(
        f"PgBouncer: ({tasks - draining} tasks during a deployment ({settings.max_tasks} at "
        f"{settings.maximum_percent} %) + {draining} tasks of the previous deployment that still "
        f"drain) x {settings.max_db_connections} connections of a task, all users together",
        tasks * settings.max_db_connections,
    )


def _sql_lines(config: Config) -> Iterator[Line]:
    """Count what PgBouncer's second name of the database adds; other poolers have none."""
    if not config.sql.enabled or config.pooler != "pgbouncer":
        return
    tasks, each = most_tasks(config), config.sql.max_db_connections
    yield Line(
        f"PgBouncer for /sql: the same {tasks} tasks x {each} connections of a task, all trust"
        " levels together",
        tasks * each,
    )


def _proxy_line(config: Config, limit: int) -> Line:
    percent = config.rds_proxy.max_connections_percent
    return Line(f"RDS Proxy: {percent} % of {limit}", math.ceil(limit * percent / 100))


# Client connections


def _client_sums(config: Config, clients: Sequence[Client]) -> Iterator[Sum | LoginStorm]:
    limit = _client_limit(config)
    if limit is None:
        return  # RDS Proxy has no client limit
    count, name = limit
    lines = [Line(client.describe(), client.connections) for client in clients]
    lines.append(Line("functions of other apps", config.functions.other_clients))
    yield Sum("client connection", tuple(lines), count, name)
    if _session_pooling(config):
        yield _session_sum(config, clients)
    if config.pooler == "pgbouncer":
        yield _login_storm(config, clients, count)


def _client_limit(config: Config) -> tuple[int, str] | None:
    if config.pooler == "rds-proxy":
        return None
    if config.pooler == "external":
        return config.external.max_clients, "external.max_clients"
    settings, kept = config.pgbouncer, sql_clients(config)
    tasks = remaining_tasks(settings.tasks)
    if not kept:
        name = f"pgbouncer.max_client_conn x {tasks} tasks, while one is down"
        return tasks * settings.max_client_conn, name
    name = (
        f"(pgbouncer.max_client_conn - {kept} reserved for /sql) x {tasks} tasks, while one is "
        f"down, + {kept} of /sql"
    )
    return tasks * (settings.max_client_conn - kept) + kept, name


def sql_clients(config: Config) -> int:
    """Count the client connections of `/sql`; each task of PgBouncer reserves as many.

    All of them may reach the same task: a load balancer chooses one for each.
    """
    sql = config.sql
    return Client("sql", sql.reserved_concurrency, sql.slots).connections if sql.enabled else 0


def _session_pooling(config: Config) -> bool:
    return config.pooler == "pgbouncer" and config.pgbouncer.pool_mode == "session"


def _session_sum(config: Config, clients: Sequence[Client]) -> Sum:
    """Add up sessions: in session mode each client keeps a server connection."""
    settings = config.pgbouncer
    tasks = remaining_tasks(settings.tasks)
    each = config.pool_size
    everyone = tasks * settings.max_client_conn
    lines = [
        Line(
            client.describe(),
            everyone if isinstance(client.concurrency, Cap) else client.connections,
        )
        for client in clients
    ]
    lines.append(Line("functions of other apps", config.functions.other_clients))
    return Sum(
        "session",
        tuple(lines),
        tasks * each,
        f"server connections: {each} x {tasks} tasks, while one is down",
    )


# Logins


def _login_storm(config: Config, clients: Sequence[Client], accepted: int) -> LoginStorm:
    """Count the logins of all environments that can start at once, up to the client limit."""
    settings, timeout = config.pgbouncer, config.functions.checkout_timeout
    lines = [client.logins(timeout) for client in clients]
    lines.append(Line("functions of other apps", config.functions.other_clients))
    beyond = sum(line.connections for line in lines) - accepted
    if beyond > 0:
        lines.append(Line(f"answered 503: PgBouncer accepts {accepted} clients", -beyond))
    tasks = remaining_tasks(settings.tasks)
    return LoginStorm(tuple(lines), tasks, settings.cpu, timeout)


# Remedies

_Change = Callable[[int], tuple[Config, Sequence[Client]]]
_Candidate = tuple[str, int, Sequence[int], _Change]


def _candidates(config: Config, clients: tuple[Client, ...]) -> Iterator[_Candidate]:
    """List the changes that could make a budget fit, each with its values, the nearest first."""
    for section, name, last in _settings_of(config):
        yield _setting(config, clients, section, name, last)
    if config.pooler == "pgbouncer":
        yield _cpu(config, clients)
    for client in clients:
        yield _concurrency(config, clients, client)


def _settings_of(config: Config) -> Iterator[tuple[str, str, int]]:
    """Name the settings that matter to a stage, and the last value to try for each."""
    yield "functions", "other_clients", 0
    yield "functions", "other_clients", 100_000
    if config.pooler == "external":
        yield "external", "max_clients", 100_000
        return
    yield "database", "max_connections", most_connections(config)
    if config.pooler == "rds-proxy":
        yield "rds_proxy", "max_connections_percent", 1
        return
    yield "pgbouncer", "max_db_connections", 2
    if config.sql.enabled:
        least = config.sql.least_connections(config.users_of_a_login)
        yield "sql", "max_db_connections", least
    yield "pgbouncer", "max_tasks", config.pgbouncer.tasks
    # Only upwards: PgBouncer rejects a client after the TLS handshake, 90 % of a login's cost.
    yield "pgbouncer", "max_client_conn", 55_000
    yield "pgbouncer", "tasks", config.pgbouncer.max_tasks
    yield "functions", "checkout_timeout", most_checkout(config)


def _setting(
    config: Config, clients: tuple[Client, ...], section: str, name: str, last: int
) -> _Candidate:
    current = getattr(getattr(config, section), name)
    if current is None:
        current, _ = max_connections(config)

    def change(value: int) -> tuple[Config, Sequence[Client]]:
        changed = replace(getattr(config, section), **{name: value})
        return replace(config, **{section: changed}), clients

    return f"{section}.{name}", current, _steps(current, last), change


def _cpu(config: Config, clients: tuple[Client, ...]) -> _Candidate:
    current = config.pgbouncer

    def change(value: int) -> tuple[Config, Sequence[Client]]:
        memory = max(current.memory, TASK_MEMORY[value][0])
        return replace(config, pgbouncer=replace(current, cpu=value, memory=memory)), clients

    values = [cpu for cpu in TASK_MEMORY if cpu > current.cpu]
    name = "pgbouncer.cpu (with at least twice as much pgbouncer.memory)"
    return name, current.cpu, values, change


def _concurrency(config: Config, clients: tuple[Client, ...], client: Client) -> _Candidate:
    current, name = client.concurrency, f"the concurrency of {client.name}"
    if isinstance(current, Cap):
        current = client.new_at_once(config.functions.checkout_timeout)
        name = f"the new environments of {client.name}, by a reservation,"

    def change(value: int) -> tuple[Config, Sequence[Client]]:
        changed = replace(client, concurrency=value)
        return config, [changed if each is client else each for each in clients]

    return name, current, _steps(current, 1), change


def _steps(current: int, last: int) -> range:
    step = 1 if last > current else -1
    return range(current + step, last + step, step)
