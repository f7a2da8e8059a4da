"""The caller of a request whose token the API's JWT authorizer has verified."""

from collections.abc import Mapping
from typing import Any

from .callers import CALLER_ROLE, Caller, StageRules


class TokenError(LookupError):
    """The event has no verified claims: its route has no JWT authorizer."""


def caller_of_token(event: Mapping[str, Any], rules: StageRules) -> Caller:
    """Return the caller with the token's claims, which may send registered statements only.

    API Gateway makes every claim a text: `true`, `1767225600`, a list `[a b]`. A policy sees that
    text, and cannot distinguish a list from a text that looks like one. Raises TokenError.
    """
    claims = verified_claims(event)
    if claims is None:
        raise TokenError("the event has no claims of a JWT authorizer")
    return Caller(
        key="jwt",
        role=CALLER_ROLE,
        limits=rules.limits,
        statements=rules.statements.for_tokens(),
        claims=claims,
    )


def verified_claims(event: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the claims that the API's authorizer has verified; None on a route without one.

    Only the event's request context has them: a client writes headers and body, not the context.
    """
    found: Any = event
    for name in ("requestContext", "authorizer", "jwt", "claims"):
        if not isinstance(found, dict):  # JSON has no other mapping, and the check is cheap
            return None
        found = found.get(name)
    if not isinstance(found, dict) or not found:
        return None
    return {str(name): str(value) for name, value in found.items()}
