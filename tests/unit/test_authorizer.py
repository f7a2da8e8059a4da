"""A token is verified once, and what was verified is never believed for longer than it may be."""

import asyncio
import time
import uuid
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import jwt
import pytest

from lambda_pg_cdk.local.deployment.deployed import JwtAuthorizer
from lambda_pg_cdk.local.http_api import authorizer as module
from lambda_pg_cdk.local.http_api.authorizer import Authorizer, ForbiddenError, UnauthorizedError
from lambda_pg_cdk.local.http_api.issuer import AUDIENCE
from tests.support.issuer import issuer_at
from tests.support.tokens import refused

ISSUER = issuer_at("https://issuer.example")
SETTINGS = JwtAuthorizer(ISSUER.url, (AUDIENCE,))


class Guard(Authorizer):
    """An authorizer whose issuer publishes what the test says."""

    def __init__(self) -> None:
        """Publish the issuer's key."""
        super().__init__(None)  # type: ignore[arg-type]  # nothing is fetched
        self.published = ISSUER.jwks()

    async def _get(self, url: str) -> dict[str, Any]:
        return self.published if url.endswith("jwks.json") else ISSUER.discovery()

    def claims(
        self, token: str, settings: JwtAuthorizer = SETTINGS, scopes: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """Return the claims of a request with this token, or raise what it is refused with."""
        return asyncio.run(self.check(settings, scopes, f"Bearer {token}"))


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the tokens whose signature was verified, with an entry for each time."""
    found: list[str] = []
    verify = module.verify

    def noted(token: str, key: jwt.PyJWK, settings: JwtAuthorizer) -> dict[str, Any]:
        found.append(token)
        return verify(token, key, settings)

    monkeypatch.setattr(module, "verify", noted)
    return found


def test_a_token_is_verified_once(verified: list[str]) -> None:
    """The second request with it costs no signature; another token is verified itself."""
    guard, token, other = Guard(), ISSUER.token("a"), ISSUER.token("b")
    assert [guard.claims(each)["sub"] for each in (token, token, other)] == ["a", "a", "b"]
    assert verified == [token, other]


def test_a_token_that_has_expired_since_is_verified_again(
    verified: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock of that moment, and so it is refused."""
    guard, token = Guard(), ISSUER.token("a", seconds=60)
    guard.claims(token)
    late = SimpleNamespace(time=lambda: time.time() + 61, monotonic=time.monotonic)
    monkeypatch.setattr(module, "time", late)
    guard.claims(token)
    assert verified == [token, token]


def test_a_key_that_is_withdrawn_takes_its_tokens_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the keys are fetched again, nothing that an old one has verified counts any more."""
    guard, token = Guard(), ISSUER.token("a")
    guard.claims(token)
    guard.published = {"keys": []}
    guard.claims(token)
    monkeypatch.setattr(module, "JWKS_SECONDS", 0.0)
    with pytest.raises(UnauthorizedError):
        guard.claims(token)


def test_keys_are_not_fetched_again_in_the_middle_of_a_long_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A storm on a busy machine leaves no time for an answer: an HTTP API keeps keys for hours."""
    guard, token = Guard(), ISSUER.token("a")
    guard.claims(token)
    guard.published = {"keys": []}
    later = SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() + 3600)
    monkeypatch.setattr(module, "time", later)
    assert guard.claims(token)["sub"] == "a"


def test_what_one_route_accepts_is_not_accepted_by_another(verified: list[str]) -> None:
    """Audience and scopes are those of the route."""
    guard, token = Guard(), ISSUER.token("a", scope="read")
    guard.claims(token, scopes=("read",))
    with pytest.raises(ForbiddenError):
        guard.claims(token, scopes=("write",))
    with pytest.raises(UnauthorizedError):
        guard.claims(token, JwtAuthorizer(ISSUER.url, ("another",)))
    assert verified == [token, token]


def test_only_so_many_tokens_are_remembered(
    verified: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller with ever new tokens does not fill the memory."""
    monkeypatch.setattr(module, "MOST_TOKENS", 2)
    guard, tokens = Guard(), [ISSUER.token(name) for name in "abc"]
    for token in [*tokens, tokens[0]]:
        guard.claims(token)
    assert verified == [*tokens, tokens[0]]


TOKENS = refused(ISSUER, str(uuid.uuid4()), "read")


def accepted() -> set[str]:
    """Name the tokens of the collection that come through."""
    guard, found = Guard(), set()
    for what, token in TOKENS.items():
        with suppress(UnauthorizedError):
            guard.claims(token or "", scopes=("read",))
            found.add(what)
    return found


def test_each_token_with_something_wrong_is_refused() -> None:
    """Also a forged one: the algorithm is never taken from the token."""
    assert accepted() == set()


@pytest.mark.parametrize(
    ("changes", "through"),
    [
        ({"verify_exp": False}, {"expired"}),
        ({"verify_nbf": False}, {"not valid yet"}),
        ({"verify_iat": False}, {"from the future"}),
        ({"verify_iss": False}, {"another issuer"}),
        ({"require": []}, {"no expiry"}),
    ],
    ids=["exp", "nbf", "iat", "iss", "required"],
)
def test_each_check_is_what_refuses_its_token(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], through: set[str]
) -> None:
    """Without it that token, and no other one, comes through."""
    decode: Any = jwt.decode

    def lax(*arguments: Any, options: Any, **named: Any) -> Any:
        return decode(*arguments, options={**options, **changes}, **named)

    monkeypatch.setattr(jwt, "decode", lax)
    assert accepted() == through


def test_the_signature_is_what_refuses_forged_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another key, changed claims, no algorithm, and the public key taken for a password."""
    decode: Any = jwt.decode

    def lax(*arguments: Any, options: Any, **named: Any) -> Any:
        every = dict.fromkeys(("verify_exp", "verify_nbf", "verify_iat", "verify_iss"), True)
        asked = {**every, **options, "verify_signature": False}
        return decode(*arguments, options=asked, **named)

    monkeypatch.setattr(jwt, "decode", lax)
    forged = {"another key", "changed subject", "algorithm none", "signed with the public key"}
    assert accepted() == forged
