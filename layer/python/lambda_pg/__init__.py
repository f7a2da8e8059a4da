"""PostgreSQL connections for AWS Lambda that do not run out."""

from lambda_pg._database import Database
from lambda_pg._errors import (
    CheckoutTimeoutError,
    CommitOutcomeUnknownError,
    ConfigurationError,
    ConnectFailedError,
    CredentialsError,
    DatabaseUnavailableError,
    DeadlineExceededError,
)
from lambda_pg._settings import Settings

__all__ = [
    "CheckoutTimeoutError",
    "CommitOutcomeUnknownError",
    "ConfigurationError",
    "ConnectFailedError",
    "CredentialsError",
    "Database",
    "DatabaseUnavailableError",
    "DeadlineExceededError",
    "Settings",
]
