"""IAM tokens instead of passwords, for RDS and RDS Proxy, without boto3 where possible.

A token is a presigned request that is never sent: making one needs no network.
"""

import datetime
import os
from typing import Final

from lambda_pg._errors import CredentialsError
from lambda_pg._settings import Settings
from lambda_pg._signature import Keys, presign

EXPIRES: Final = 900
"""Seconds for which a token opens connections (AWS's own limit); open ones are not ended."""


def auth_token(settings: Settings) -> str:
    """Make a token for the endpoint and the user of the settings, with the role's keys.

    RDS rejects a token for another name of the same server.
    Raises CredentialsError if there are no keys.
    """
    return make_token(
        settings.rds_endpoint or settings.host or "",
        settings.rds_port or settings.port or 5432,
        settings.user or "",
        settings.region or "",
        _keys(),
        datetime.datetime.now(datetime.UTC),
    )


def make_token(
    host: str, port: int, user: str, region: str, keys: Keys, now: datetime.datetime
) -> str:
    """Make the token that botocore's generate_db_auth_token makes; `now` is in UTC."""
    query = presign(
        keys,
        host=host.lower() if port == 443 else f"{host.lower()}:{port}",
        region=region,
        service="rds-db",
        query={"Action": "connect", "DBUser": user},
        expires=EXPIRES,
        now=now,
    )
    return f"{host}:{port}/?{query}"


def _keys() -> Keys:
    """Take the keys of the environment, or ask boto3, which knows every other source."""
    environ = os.environ
    access_key, secret_key = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if access_key and secret_key:
        return Keys(access_key, secret_key, environ.get("AWS_SESSION_TOKEN"))
    return _keys_of_boto3()


def _keys_of_boto3() -> Keys:
    try:
        import boto3  # noqa: PLC0415 - 200 ms of a cold start, paid only on this path
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415 - as above
    except ImportError as error:
        raise CredentialsError(
            "an IAM token needs boto3 to find keys, which Lambda has and this environment has not: "
            "pip install boto3, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error

    try:
        found = boto3.Session().get_credentials()
        frozen = None if found is None else found.get_frozen_credentials()
    except BotoCoreError as error:
        raise CredentialsError(f"no AWS credentials for an IAM token: {error}") from error
    if frozen is None:
        raise CredentialsError(
            "no AWS credentials for an IAM token: a function needs a role, "
            "a laptop needs a profile (AWS_PROFILE)"
        )
    return Keys(frozen.access_key, frozen.secret_key, frozen.token)
