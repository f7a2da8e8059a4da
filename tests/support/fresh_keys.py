"""A hook of schemathesis: no two of its requests have the same Idempotency-Key.

Otherwise it would send one key with two requests, which are refused although each is valid.
"""

import re
import uuid
from typing import Any

import schemathesis

KEY = re.compile(r'[!#-~][!-~]{0,254}|"(?:[!#-\[\]-~]|\\["\\]){1,255}"')


@schemathesis.hook
def before_call(
    _: schemathesis.HookContext, case: "schemathesis.Case[Any]", __: dict[str, Any]
) -> None:
    """Replace a valid key; others are refused anyway."""
    headers: Any = case.headers or {}
    if KEY.fullmatch(headers.get("Idempotency-Key", "")):
        headers["Idempotency-Key"] = str(uuid.uuid4())
