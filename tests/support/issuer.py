"""An issuer of tokens for tests. A process makes its RSA key once: it takes a tenth of a second."""

from dataclasses import replace
from functools import cache

from lambda_pg_cdk.local.http_api.issuer import Issuer


def issuer_at(url: str) -> Issuer:
    """Give the issuer at a URL. All of them have the same key."""
    return replace(_issuer(), url=url)


@cache
def _issuer() -> Issuer:
    return Issuer.create("")
