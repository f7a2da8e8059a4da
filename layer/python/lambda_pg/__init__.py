"""PostgreSQL connections for AWS Lambda that do not run out."""

import os

from lambda_pg._secrets import prefetch

prefetch(os.environ)  # the secret comes while psycopg is imported: docs/decisions/0006

from lambda_pg._database import Database  # noqa: E402
from lambda_pg._errors import (  # noqa: E402
    CheckoutTimeoutError,
    CommitOutcomeUnknownError,
    ConfigurationError,
    ConnectFailedError,
    CredentialsError,
    DatabaseUnavailableError,
    DeadlineExceededError,
    StatementRefusedError,
)
from lambda_pg._settings import Settings  # noqa: E402

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
    "StatementRefusedError",
]
