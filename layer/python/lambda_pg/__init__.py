"""PostgreSQL connections for AWS Lambda that do not run out."""

import gc
import os

from lambda_pg._secrets import prefetch

prefetch(os.environ)  # the secret comes while psycopg is imported: docs/decisions/0006

_collecting = gc.isenabled()
gc.disable()  # 7 of the 90 ms that psycopg takes: what an import makes is there to stay (measured)
try:
    from lambda_pg._database import Database
    from lambda_pg._errors import (
        CheckoutTimeoutError,
        CommitOutcomeUnknownError,
        ConfigurationError,
        ConnectFailedError,
        CredentialsError,
        DatabaseUnavailableError,
        DeadlineExceededError,
        StatementRefusedError,
    )
    from lambda_pg._settings import Settings
finally:
    if _collecting:
        gc.enable()

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
