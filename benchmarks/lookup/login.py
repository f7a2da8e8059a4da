"""The login of functions without the layer."""

import json
import os
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3

from benchmarks.lookup import patience


def connection_parameters() -> dict[str, Any]:
    """Return what psycopg needs in addition to libpq's variables.

    It reads the secret at import, so restored environments share it.
    """
    with closing(boto3.client("secretsmanager")) as client:
        answer = client.get_secret_value(SecretId=os.environ["LAMBDA_PG_SECRET_ARN"])
    secret = json.loads(answer["SecretString"])
    return {
        "user": secret["username"],
        "password": secret["password"],
        "sslrootcert": str(_roots()),
        "prepare_threshold": None,
        "connect_timeout": patience(),
    }


def _roots() -> Path:
    """Write the CA of the pooler's certificate to a file for libpq."""
    with tempfile.NamedTemporaryFile("w", suffix=".pem", delete=False) as file:
        file.write(os.environ["LAMBDA_PG_CA_PEM"])
    return Path(file.name)
