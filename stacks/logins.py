"""How a function logs in at the pooler: its permissions, its variables, its version's inputs."""

from typing import Any, Protocol

from aws_cdk import Fn, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_

from lambda_pg_cdk.stacks.functions import read_secret
from lambda_pg_cdk.stacks.published import published
from lambda_pg_cdk.stage.config import Config


class Login(Protocol):
    """The login, or the logins, of a function."""

    def allow(self, function: lambda_.Function) -> None:
        """Let the function log in: read secrets, or get tokens."""

    def variables(self, function: lambda_.Function) -> dict[str, Any]:
        """Return arguments of `stage.environment.environment`."""

    def words(self, function: lambda_.Function) -> list[str]:
        """Name the logins in the description of the function's version: docs/decisions/0012."""


class ApplicationLogin:
    """The application's: one secret, or tokens for one user."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def allow(self, function: lambda_.Function) -> None:
        """Let the function read one secret, or get tokens for one user."""
        if self._config.by_token:
            allow_tokens(function, self._read(function, "pooler/connect-arn"))
            return
        external = self._config.external if self._config.pooler == "external" else None
        arn = self._read(function, "pooler/secret-arn")
        read_secret(function, arn, external.kms_key_arn if external else None)

    def variables(self, function: lambda_.Function) -> dict[str, Any]:
        """Name the user or the secret, and the database."""
        database = {} if self._config.pooler == "external" else {"database": self._database}
        if self._config.by_token:
            return {**database, "token_user": self._read(function, "pooler/user")}
        return {**database, "secret_arn": self._read(function, "pooler/secret-arn")}

    def words(self, function: lambda_.Function) -> list[str]:
        """Name the secret."""
        if self._config.by_token:
            return []
        return [name_of(self._read(function, "pooler/secret-arn"))]

    @property
    def _database(self) -> str:
        return self._config.database.name

    def _read(self, function: lambda_.Function, value: str) -> str:
        return published(self._config, value).read(Stack.of(function))


def allow_tokens(function: lambda_.Function, user: str) -> None:
    """Let a function get tokens for one user, by the user's ARN."""
    function.add_to_role_policy(iam.PolicyStatement(actions=["rds-db:connect"], resources=[user]))


def name_of(secret_arn: str) -> str:
    """Return the name of a secret, with the six characters at its end."""
    return Fn.select(6, Fn.split(":", secret_arn))
