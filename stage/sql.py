"""The settings of the function `sql`, which answers `POST /sql`."""

from dataclasses import dataclass

from lambda_pg_cdk.migrations.level_names import LEVELS
from lambda_pg_cdk.stage.patterns import HOST, SECRET_ARN
from lambda_pg_cdk.stage.schema import setting

ORIGIN = rf"\*|https?://{HOST}(:\d{{1,5}})?"
FILE = r"(?!.*(^|/)\.{1,2}(/|$))[\w.-]+(/[\w.-]+)*"
"""A path below the folder of cdk.json."""

_SECRET = {
    "pattern": SECRET_ARN,
    "shape": "the whole ARN of a secret, with the six characters at its end",
}


@dataclass(frozen=True, kw_only=True)
class Sql:
    """The function `sql`, its routes, its roles in the database and its limits.

    Large because it has one attribute for each setting.
    """

    enabled: bool = setting(
        False, "whether to deploy the function `sql` with the route `POST /sql`"
    )
    roles: tuple[str, ...] = setting(
        ("reader",),
        "roles that keys can have: 'reader' may SELECT, 'writer' may SELECT, INSERT, UPDATE and"
        " DELETE, 'caller' is for sql.jwt",
        choices=LEVELS,
    )
    max_db_connections: int = setting(
        4,
        "server connections of each task of PgBouncer for `/sql`, for all roles together; they"
        " come in addition to pgbouncer.max_db_connections",
        minimum=1,
        maximum=1000,
    )
    role_connections: int | None = setting(
        None,
        "how many of them one role may use; null: an equal share, and at least one for each user of"
        " a rotation. With database.rotation 'alternating' each of the role's two users has half of"
        " them",
        minimum=1,
        maximum=1000,
    )
    reserved_concurrency: int = setting(
        20, "reserved concurrency of the function", minimum=1, maximum=10000
    )
    timeout: int = setting(20, "longest invocation", unit="seconds", minimum=2, maximum=25)
    rate_limit: int = setting(
        200, "requests accepted by each of its routes", unit="a second", minimum=1, maximum=100000
    )
    burst_limit: int = setting(
        400, "requests accepted at once by each of its routes", minimum=1, maximum=100000
    )
    statement_timeout: int = setting(
        10, "longest statement, set on each role", unit="seconds", minimum=1, maximum=900
    )
    lock_timeout: int = setting(
        3, "longest wait for a lock, set on each role", unit="seconds", minimum=1, maximum=900
    )
    transaction_timeout: int = setting(
        15, "longest transaction, set on each role", unit="seconds", minimum=1, maximum=900
    )
    key_lifetime: int = setting(
        60,
        "time for which an environment uses its copy of the keys: a revoked key is accepted for"
        " so long",
        unit="seconds",
        minimum=1,
        maximum=3600,
    )
    max_rows: int = setting(
        10_000, "rows of an answer; a key can have less", minimum=1, maximum=1_000_000
    )
    max_bytes: int = setting(
        5_000_000,
        "size of an answer: of its values as they come, and of the whole as it leaves, compressed"
        " where the client accepts it (Lambda allows 6,000,000); a key can have less",
        unit="bytes",
        minimum=1000,
        maximum=50_000_000,
    )
    max_statements: int = setting(
        100, "statements of a batch; a key can have less", minimum=1, maximum=10_000
    )
    max_request_bytes: int = setting(
        1_000_000,
        "size of a request; a key can have less",
        unit="bytes",
        minimum=1000,
        maximum=5_000_000,
    )
    gzip: bool = setting(True, "whether large answers are compressed for clients that accept it")
    origins: tuple[str, ...] = setting(
        (),
        "origins whose pages may call it from a browser",
        pattern=ORIGIN,
        shape="origins, as in https://www.example.com, or *",
    )
    hosts: tuple[str, ...] = setting(
        (),
        "hosts that connection strings may name besides the API's own",
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
        "whether callers with a token of identity.issuer may run the registered statements as"
        " 'caller', by an HTTP API of their own",
    )
    reader_secret_arn: str | None = setting(
        None,
        "with pooler 'external': secret with the pooled `url` of the reader's login, encrypted"
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
        """Client connections of an environment: one for each role's login."""
        return len(self.roles)

    def secret_of(self, role: str) -> str | None:
        """Return the ARN of a role's secret, if the settings name it."""
        found: str | None = getattr(self, f"{role}_secret_arn")
        return found

    def part_of_a_role(self, users: int) -> int:
        """Return the server connections of one role in a task; `users` is how many it has."""
        if self.role_connections is not None:
            return self.role_connections
        return max(users, self.max_db_connections // len(self.roles))

    def least_connections(self, users: int) -> int:
        """Return the least `max_db_connections` with which no role can take all of them."""
        part = self.role_connections or users
        return part if len(self.roles) == 1 else part + 1
