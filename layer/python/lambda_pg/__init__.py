"""PostgreSQL connections for AWS Lambda that do not run out."""

import gc
import os
import sys

from lambda_pg._secrets import prefetch

__version__ = "0.1.0"

# A test may still replace Secrets Manager.
if sys.modules.keys().isdisjoint(("pytest", "moto")):
    prefetch(os.environ)  # the secret comes while psycopg is imported: docs/decisions/0006

# The garbage collector need not look at what a function has imported: docs/decisions/0009.
_freeze = "AWS_LAMBDA_FUNCTION_NAME" in os.environ and gc.isenabled()
if _freeze:
    gc.disable()
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
    from lambda_pg._rehearsal import rehearse
    from lambda_pg._settings import Settings
    from lambda_pg._slots import SharedSlots

    rehearse(os.environ)  # docs/decisions/0022
except ImportError as error:
    from lambda_pg._psycopg import explain

    explain(error)  # a function's own psycopg may be older than the layer's
    raise
finally:
    if _freeze:
        gc.freeze()
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
    "SharedSlots",
    "StatementRefusedError",
]
