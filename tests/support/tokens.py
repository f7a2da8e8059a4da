"""Tokens that an API has to refuse, and tokens of subjects that can own nothing."""

import base64
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization

from lambda_pg_cdk.local.http_api.issuer import Issuer

HOUR = 3600.0

SUBJECTS: Mapping[str, str | None] = {
    "missing": None,
    "empty": "",
    "a name": "somebody",
    "almost a UUID": "6f1c7f5e-8f57-4c3c-9c7e-0d7f3a1f2b6",
    "two": f"{uuid.UUID(int=1)} {uuid.UUID(int=2)}",
    "SQL": "' OR owner IS NOT NULL --",
}
"""Subjects that are no UUID; None is a token without `sub`."""


def refused(issuer: Issuer, subject: str, scope: str) -> dict[str, str | None]:
    """Return a token for each check that an authorizer makes, by what is wrong; None is no token.

    Each would be accepted, with every scope, if that one check were missing.
    """
    good, now = issuer.token(subject, scope=scope), time.time()
    another = Issuer.create(issuer.url)

    def signed(**claims: Any) -> str:
        return issuer.token(subject, scope=scope, claims=claims)

    return {
        "none at all": None,
        "no token": "nonsense",
        "expired": signed(exp=int(now - 1)),
        "not valid yet": signed(nbf=int(now + HOUR)),
        "from the future": signed(iat=int(now + HOUR)),
        "another issuer": signed(iss="https://another-issuer.example"),
        "another audience": signed(aud="another"),
        "no expiry": resigned(issuer, good, without="exp"),
        "another key": another.token(subject, scope=scope),
        "another key id": jwt.encode(claims_of(good), another.key, "RS256", {"kid": "another"}),
        "changed subject": tampered(good, sub=str(uuid.uuid4())),
        "algorithm none": jwt.encode(claims_of(good), "", "none", {"kid": issuer.key_id}),
        "signed with the public key": hs256(issuer, claims_of(good)),
    }


def without_subject(issuer: Issuer, scope: str) -> str:
    """Sign a token that has no `sub`."""
    return resigned(issuer, issuer.token("", scope=scope), without="sub")


def resigned(issuer: Issuer, token: str, *, without: str) -> str:
    """Sign the claims of a token again, except one."""
    claims = {name: value for name, value in claims_of(token).items() if name != without}
    return jwt.encode(claims, issuer.key, "RS256", {"kid": issuer.key_id})


def claims_of(token: str) -> dict[str, Any]:
    """Read the claims of a token; nothing is checked."""
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def tampered(token: str, **changes: str) -> str:
    """Change claims of a token, and keep its signature."""
    head, _, signature = token.split(".")
    return f"{head}.{encoded({**claims_of(token), **changes})}.{signature}"


def hs256(issuer: Issuer, claims: Mapping[str, Any]) -> str:
    """Sign claims with the issuer's public key as if it were a password, as a forger would."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    key = issuer.key.public_key().public_bytes(serialization.Encoding.PEM, form)
    text = f"{encoded({'alg': 'HS256', 'typ': 'JWT', 'kid': issuer.key_id})}.{encoded(claims)}"
    signature = hmac.new(key, text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def encoded(part: Mapping[str, Any]) -> str:
    """Encode a part of a token."""
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
