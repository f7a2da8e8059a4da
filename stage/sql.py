"""The settings of the function `sql`, which answers `POST /sql`."""

from dataclasses import dataclass

from lambda_pg_cdk.migrations.level_names import LEVELS
from lambda_pg_cdk.stage.patterns import HOST, ORIGIN, SECRET_ARN
from lambda_pg_cdk.stage.schema import setting

FILE = r"(?!.*(^|/)\.{1,2}(/|$))[\w.-]+(/[\w.-]+)*"
"""A path below the folder of cdk.json."""

_SECRET = {
    "pattern": SECRET_ARN,
    "shape": "the whole ARN of a secret, with the six characters at its end",
}


@dataclass(frozen=True, kw_only=True)
class Sql:
    """The function `sql`, its routes, its trust levels (`roles`) and its limits.

    Large because it has one attribute for each setting.
    """

    enabled: bool = setting(
        False, "whether to deploy the function `sql` with the route `POST /sql`"
    )
    roles: tuple[str, ...] = setting(
        ("reader",),
        "trust levels: 'reader' can have SELECT only; 'writer' also INSERT, UPDATE and DELETE;"
        " 'caller', for tokens (sql.jwt), the same as 'writer'",
        choices=LEVELS,
    )
    max_db_connections: int = setting(
        4,
        "server connections of each task of PgBouncer for `/sql`, all trust levels together; they"
        " are in addition to pgbouncer.max_db_connections",
        minimum=1,
        maximum=1000,
    )
    role_connections: int | None = setting(
        None,
        "how many of sql.max_db_connections one trust level may use; null: an equal share, at least"
        " one for each user of its login. With database.rotation 'alternating' a login has two"
        " users, and each has half",
        minimum=1,
        maximum=1000,
    )
    reserved_concurrency: int = setting(
        20, "reserved concurrency of the function", minimum=1, maximum=10000
    )
    timeout: int = setting(20, "longest invocation", unit="seconds", minimum=2, maximum=25)
    rate_limit: int = setting(
        200, "requests accepted by each route of `/sql`", unit="a second", minimum=1, maximum=100000
    )
    burst_limit: int = setting(
        400, "requests accepted at once by each route of `/sql`", minimum=1, maximum=100000
    )
    statement_timeout: int = setting(
        10,
        "longest statement, set for each login of a trust level",
        unit="seconds",
        minimum=1,
        maximum=900,
    )
    lock_timeout: int = setting(
        3,
        "longest wait for a lock, set for each login of a trust level",
        unit="seconds",
        minimum=1,
        maximum=900,
    )
    transaction_timeout: int = setting(
        15,
        "longest transaction, set for each login of a trust level (PostgreSQL 17 and newer)",
        unit="seconds",
        minimum=1,
        maximum=900,
    )
    key_lifetime: int = setting(
        60,
        "time for which an environment uses its copy of the table of keys, and so accepts a revoked"
        " key; up to 300 seconds longer while Secrets Manager fails",
        unit="seconds",
        minimum=1,
        maximum=3600,
    )
    max_rows: int = setting(
        10_000, "rows of an answer; a key can have a lower limit", minimum=1, maximum=1_000_000
    )
    max_bytes: int = setting(
        5_000_000,
        "size of an answer: of its values as PostgreSQL sends them, and of the answer as the"
        " function returns it, which is compressed if the client accepts that (Lambda allows"
        " 6,000,000); a key can have a lower limit",
        unit="bytes",
        minimum=1000,
        maximum=50_000_000,
    )
    max_statements: int = setting(
        100, "statements of a batch; a key can have a lower limit", minimum=1, maximum=10_000
    )
    max_request_bytes: int = setting(
        1_000_000,
        "size of a request's body; a key can have a lower limit",
        unit="bytes",
        minimum=1000,
        maximum=5_000_000,
    )
    gzip: bool = setting(True, "whether large answers are compressed for clients that accept it")
    origins: tuple[str, ...] = setting(
        (),
        "origins whose pages may send requests to `/sql` from a browser",
        pattern=ORIGIN,
        shape="origins, as in https://www.example.com, or *",
    )
    hosts: tuple[str, ...] = setting(
        (),
        "hosts that connection strings may name, in addition to the API's",
        pattern=HOST,
        shape="DNS names",
    )
    statements: str | None = setting(
        None,
        "file with the registered statements, which goes into the function's zip",
        pattern=FILE,
        shape="a path below the folder of cdk.json, as in sql/statements.json",
    )
    jwt: bool = setting(
        False,
        "whether callers with a token of identity.issuer may run the registered statements, at the"
        " trust level 'caller' and through a second HTTP API",
    )
    reader_secret_arn: str | None = setting(
        None,
        "with pooler 'external': secret with the pooled `url` of the login of 'reader', encrypted"
        " like external.secret_arn",
        **_SECRET,
    )
    writer_secret_arn: str | None = setting(
        None, "with pooler 'external': the same for 'writer'", **_SECRET
    )
    caller_secret_arn: str | None = setting(
        None, "with pooler 'external': the same for 'caller'", **_SECRET
    )

    @property
    def slots(self) -> int:
        """Client connections of an environment: one for each trust level's login."""
        return len(self.roles)

    def secret_of(self, role: str) -> str | None:
        """Return the ARN of a trust level's secret, if the settings name it."""
        found: str | None = getattr(self, f"{role}_secret_arn")
        return found

    def part_of_a_role(self, users: int) -> int:
        """Return the server connections of a trust level in a task; `users` has its users."""
        if self.role_connections is not None:
            return self.role_connections
        return max(users, self.max_db_connections // len(self.roles))

    def least_connections(self, users: int) -> int:
        """Return the least `max_db_connections` of which no trust level can take all."""
        part = self.role_connections or users
        return part if len(self.roles) == 1 else part + 1
