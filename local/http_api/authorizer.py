"""Verify bearer tokens as an HTTP API's JWT authorizer does."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import jwt

from lambda_pg_cdk.local.deployment.deployed import JwtAuthorizer

JWKS_SECONDS = 7200.0  # as an HTTP API may cache them; a storm must not fetch them again
MOST_TOKENS = 10_000
_FETCH_SECONDS = aiohttp.ClientTimeout(total=2)  # API Gateway's is 1500 ms


class UnauthorizedError(Exception):
    """The token is missing or not valid: 401."""


class ForbiddenError(Exception):
    """The token is valid but lacks every scope of the route: 403."""


@dataclass(slots=True)
class _KeySet:
    keys: Mapping[str, jwt.PyJWK]
    fetched: float
    verified: dict[tuple[str, JwtAuthorizer], dict[str, Any]] = field(default_factory=dict)
    """The claims of verified tokens, until the keys are fetched again.

    A storm sends one token a thousand times, and a signature costs as much as half a request.
    """


class Authorizer:
    """Check tokens against the issuers' published keys, which are cached."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._sets: dict[str, _KeySet] = {}
        self._lock = asyncio.Lock()

    async def check(
        self, settings: JwtAuthorizer, scopes: tuple[str, ...], header: str | None
    ) -> dict[str, Any]:
        """Return the verified claims; raise `UnauthorizedError` or `ForbiddenError`."""
        token = (header or "").removeprefix("Bearer ").removeprefix("bearer ").strip()
        if not token:
            raise UnauthorizedError("no token")
        try:
            claims = _claims(token, await self._key_set(settings.issuer), settings)
        except (jwt.PyJWTError, aiohttp.ClientError, TimeoutError, KeyError, ValueError) as error:
            raise UnauthorizedError(str(error)) from error
        if scopes and not set(scopes) & granted_scopes(claims):
            raise ForbiddenError(f"none of the scopes {', '.join(scopes)}")
        return claims

    async def _key_set(self, issuer: str) -> _KeySet:
        async with self._lock:
            known = self._sets.get(issuer)
            fresh = known is not None and time.monotonic() - known.fetched < JWKS_SECONDS
            if known is None or not fresh:
                known = self._sets[issuer] = await self._fetch(issuer)
        return known

    async def _fetch(self, issuer: str) -> _KeySet:
        found = await self._get(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        keys = jwt.PyJWKSet.from_dict(await self._get(found["jwks_uri"]))
        by_id = {key.key_id: key for key in keys.keys if key.key_id}
        return _KeySet(by_id, time.monotonic())

    async def _get(self, url: str) -> dict[str, Any]:
        async with self._session.get(url, timeout=_FETCH_SECONDS) as response:
            response.raise_for_status()
            document: dict[str, Any] = await response.json()
            return document


def _claims(token: str, keys: _KeySet, settings: JwtAuthorizer) -> dict[str, Any]:
    """Return the claims of a token, verified now or earlier, that has not expired."""
    known = keys.verified.get((token, settings))
    if known is not None and time.time() < int(known["exp"]):
        return known
    key_id = str(jwt.get_unverified_header(token).get("kid", ""))
    claims = verify(token, keys.keys[key_id], settings)
    if len(keys.verified) >= MOST_TOKENS:
        keys.verified.clear()
    keys.verified[token, settings] = claims
    return claims


def verify(token: str, key: jwt.PyJWK, settings: JwtAuthorizer) -> dict[str, Any]:
    """Check signature, issuer, times and audience; raise `PyJWTError` if one is wrong.

    The algorithm is RS256 and never taken from the token. `aud` is checked, or `client_id` where a
    token has no `aud`, as API Gateway does.
    """
    claims: dict[str, Any] = jwt.decode(
        token,
        key.key,
        algorithms=["RS256"],
        issuer=settings.issuer,
        options={"require": ["exp", "iss"], "verify_aud": False},
    )
    audience = claims.get("aud", claims.get("client_id"))
    named = set(audience if isinstance(audience, list) else [audience])
    if not named & set(settings.audience):
        raise jwt.InvalidAudienceError(f"the token is for {audience!r}")
    return claims


def granted_scopes(claims: Mapping[str, Any]) -> set[str]:
    """Return the scopes of a token, from `scope` (text) or `scp` (text or list)."""
    value = claims.get("scope", claims.get("scp", ""))
    return set(value if isinstance(value, list) else str(value).split())
