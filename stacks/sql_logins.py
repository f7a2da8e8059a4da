"""The logins of `/sql`: one for each role, and no other."""

from typing import Any

from aws_cdk import Stack
from aws_cdk import aws_lambda as lambda_

from lambda_pg_cdk.stacks.functions import read_secret
from lambda_pg_cdk.stacks.logins import allow_tokens, name_of
from lambda_pg_cdk.stacks.published import published
from lambda_pg_cdk.stage.budget import sql_login_limit
from lambda_pg_cdk.stage.config import Config


def user_of(role: str) -> str:
    """Return the name of a role's user; a rotation's second user is named after it."""
    return f"sql_{role}"


def secret_of(role: str) -> str:
    """Name the published value with the ARN of a role's secret."""
    return f"sql/{role}/secret-arn"


def token_of(role: str) -> str:
    """Name the published value of what rds-db:connect has to allow for a role's user."""
    return f"sql/{role}/connect-arn"


def secrets_of(scope: Stack, config: Config) -> list[str]:
    """Return the ARNs of the roles' secrets that the stage makes; none without `/sql`."""
    roles = config.sql.roles if config.sql.enabled else ()
    return [published(config, secret_of(role)).read(scope) for role in roles]


class SqlLogins:
    """What the function `sql` may read, and which users it may log in as."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def allow(self, function: lambda_.Function) -> None:
        """Let the function read the secrets of its roles, or get tokens for their users."""
        for role in self._config.sql.roles:
            if self._config.by_token:
                user = published(self._config, token_of(role)).read(Stack.of(function))
                allow_tokens(function, user)
            else:
                read_role(function, self._config, role)

    def variables(self, _function: lambda_.Function) -> dict[str, Any]:
        """Name the database, but no login: the function has a client for each role."""
        if self._config.pooler == "external":
            return {}
        return {"database": self._config.sql_database, "by_token": self._config.by_token}

    def words(self, function: lambda_.Function) -> list[str]:
        """Name the secrets."""
        if self._config.by_token:
            return []
        roles = self._config.sql.roles
        return [name_of(secret_arn(function, self._config, role)) for role in roles]


def secret_arn(function: lambda_.Function, config: Config, role: str) -> str:
    """Return the ARN of a role's secret: that of the settings, or the stage's own."""
    given = config.sql.secret_of(role)
    return given or published(config, secret_of(role)).read(Stack.of(function))


def read_role(function: lambda_.Function, config: Config, role: str) -> None:
    """Let a function read the secret of a role."""
    key = config.external.kms_key_arn if config.pooler == "external" else None
    read_secret(function, secret_arn(function, config, role), key)


def roles_of(function: lambda_.Function, config: Config) -> str:
    """Write each role with the ARN of its secret, or with its user if that logs in by token."""
    if config.by_token:
        logins = {role: user_of(role) for role in config.sql.roles}
    else:
        logins = {role: secret_arn(function, config, role) for role in config.sql.roles}
    return Stack.of(function).to_json_string(logins)


def name_roles(migrate: lambda_.Function, config: Config) -> None:
    """Tell the migration which roles there are, their logins and their limits."""
    sql = config.sql
    if not config.by_token:
        for role in sql.roles:
            read_role(migrate, config, role)
    timeouts = {
        "statement": sql.statement_timeout,
        "lock": sql.lock_timeout,
        "idle_in_transaction": config.database.idle_in_transaction_timeout,
        "transaction": sql.transaction_timeout,
    }
    migrate.add_environment("SQL_ROLES", roles_of(migrate, config))
    migrate.add_environment("SQL_TIMEOUTS", Stack.of(migrate).to_json_string(timeouts))
    migrate.add_environment("SQL_LOGIN_LIMIT", str(sql_login_limit(config)))
