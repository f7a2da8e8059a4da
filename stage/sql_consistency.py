"""Check the settings of `/sql` against the others, after each has been checked alone. Pure."""

from collections.abc import Iterator

from lambda_pg_cdk.migrations.level_names import LEVELS
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.messages import problem, shown

LARGEST_PLAIN = 5_000_000
"""Bytes of the largest answer that is not compressed: Lambda allows 6 MB, in which the answer is
a JSON text inside of JSON, about 13 % larger."""

LONGEST_NAME = 63
"""Bytes of a database's name in PostgreSQL, and in PgBouncer."""


def sql_inconsistencies(config: Config) -> Iterator[str]:
    """Yield a message for each inconsistency: the setting, its value and what must hold."""
    if not config.sql.enabled:
        return
    for check in (_roles, _tokens, _pgbouncer, _shares, _timeouts, _sizes, _secrets):
        yield from check(config)


def _roles(config: Config) -> Iterator[str]:
    roles = config.sql.roles
    if len(set(roles)) < len(roles):
        yield problem("sql.roles", roles, "have each trust level once")


def _tokens(config: Config) -> Iterator[str]:
    sql = config.sql
    if sql.jwt and "caller" not in sql.roles:
        yield problem("sql.roles", sql.roles, "have 'caller' with sql.jwt true")
    if sql.jwt and sql.statements is None:
        yield problem(
            "sql.statements",
            None,
            "be set with sql.jwt true: callers with a token may run registered statements only,"
            " because other SQL could set the claims",
        )
    if "caller" in sql.roles and not sql.jwt:
        yield problem(
            "sql.jwt",
            sql.jwt,
            "be true with 'caller' in sql.roles: this trust level is for callers with a token",
        )


def _pgbouncer(config: Config) -> Iterator[str]:
    if config.pooler != "pgbouncer":
        return
    if config.pgbouncer.pool_mode != "transaction":
        yield problem(
            "pgbouncer.pool_mode",
            config.pgbouncer.pool_mode,
            "be 'transaction' with sql.enabled true: otherwise each environment of the function"
            " keeps a server connection for each trust level",
        )
    if len(config.sql_database) > LONGEST_NAME:
        yield problem(
            "database.name",
            config.database.name,
            f"have at most {LONGEST_NAME + len(config.database.name) - len(config.sql_database)}"
            f" characters with sql.enabled true: PgBouncer also serves it as {config.sql_database}",
        )


def _shares(config: Config) -> Iterator[str]:
    """Check that each trust level gets server connections, and that none can take all."""
    if config.pooler != "pgbouncer":
        return
    sql, users = config.sql, config.users_of_a_login
    least = sql.least_connections(users)
    if sql.role_connections is not None and sql.role_connections < users:
        yield problem(
            "sql.role_connections",
            sql.role_connections,
            f"be at least {users} with database.rotation {shown(config.database.rotation)}: a"
            f" login has {users} users, and each needs a server connection",
        )
    elif sql.max_db_connections < least:
        part, others = sql.part_of_a_role(users), len(sql.roles) > 1
        yield problem(
            "sql.max_db_connections",
            sql.max_db_connections,
            f"be at least {least}: a trust level may use {part}, for the {users} user(s) of its"
            " login" + (", and must leave one for the other trust levels" if others else ""),
        )


def _timeouts(config: Config) -> Iterator[str]:
    sql, checkout = config.sql, config.functions.checkout_timeout
    if sql.timeout <= checkout:
        yield problem(
            "sql.timeout",
            sql.timeout,
            f"be more than functions.checkout_timeout ({checkout} seconds)",
        )
    if sql.transaction_timeout < sql.statement_timeout:
        yield problem(
            "sql.transaction_timeout",
            sql.transaction_timeout,
            f"be at least sql.statement_timeout ({sql.statement_timeout} seconds)",
        )
    if sql.transaction_timeout >= sql.timeout:
        yield problem(
            "sql.transaction_timeout",
            sql.transaction_timeout,
            f"be less than sql.timeout ({sql.timeout} seconds), so that the transaction ends first",
        )


def _sizes(config: Config) -> Iterator[str]:
    sql = config.sql
    if not sql.gzip and sql.max_bytes > LARGEST_PLAIN:
        yield problem(
            "sql.max_bytes",
            sql.max_bytes,
            f"be at most {LARGEST_PLAIN} with sql.gzip false: Lambda allows answers of 6 MB",
        )


def _secrets(config: Config) -> Iterator[str]:
    """Check the secrets of trust levels, which only a stage with an external pooler names."""
    external = config.pooler == "external"
    for role in LEVELS:
        name, arn = f"sql.{role}_secret_arn", config.sql.secret_of(role)
        needed = external and role in config.sql.roles
        if needed and arn is None:
            yield problem(
                name,
                arn,
                f"be set with pooler 'external' and {shown(role)} in sql.roles: the ARN of a secret"
                " with the pooled `url` of a login for this trust level only",
            )
        elif arn is not None and not needed:
            yield problem(
                name,
                arn,
                f"be null unless pooler is 'external' and {shown(role)} is in sql.roles: otherwise"
                " the stage makes the secret",
            )
        elif arn is not None and arn == config.external.secret_arn:
            yield problem(
                name,
                arn,
                "be another secret than external.secret_arn, whose login has more rights",
            )
        elif arn is not None and arn.split(":")[3] != config.region:
            yield problem(
                name,
                arn,
                f"be a secret of the stage's region, {config.region}: replicate it to that region"
                " and set the replica's ARN",
            )
