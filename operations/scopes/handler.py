"""Put scopes into an access token: those of the user's groups that are scopes of routes.

Cognito invokes it before it makes a user's tokens (pre token generation, event version 2).
https://docs.aws.amazon.com/cognito/latest/developerguide/user-pool-lambda-pre-token-generation.html
"""

import os
from typing import Any

SCOPES = frozenset(os.environ["SCOPES"].split())


def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Return the event with the scopes to add; other scopes, claims and groups stay."""
    groups = event["request"]["groupConfiguration"].get("groupsToOverride") or []
    added = [group for group in groups if group in SCOPES]
    event["response"] = {
        "claimsAndScopeOverrideDetails": {"accessTokenGeneration": {"scopesToAdd": added}}
    }
    return event
