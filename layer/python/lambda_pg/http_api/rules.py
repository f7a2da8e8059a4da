"""The rules of a stage for its HTTP APIs, read once from environment variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from lambda_pg._errors import ConfigurationError


@dataclass(frozen=True)
class Rules:
    """What a stage demands of each request."""

    max_body: int = 65_536
    """Bytes that a request's body may have."""
    require_idempotency_key: bool = False
    require_if_match: bool = False
    problem_types: str = "docs/problems.md"
    """URL of the page that describes the problems; `#` and a problem's name follow."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Rules":
        """Read LAMBDA_PG_API_*. Raises ConfigurationError."""
        name = "LAMBDA_PG_API_MAX_BODY"
        size = environ.get(name, str(cls.max_body))
        if not (size.isascii() and size.isdecimal() and int(size) > 0):
            raise ConfigurationError([f"{name} is {size!r}; must be a number of bytes, at least 1"])
        return cls(
            max_body=int(size),
            require_idempotency_key=environ.get("LAMBDA_PG_API_REQUIRE_IDEMPOTENCY_KEY") == "1",
            require_if_match=environ.get("LAMBDA_PG_API_REQUIRE_IF_MATCH") == "1",
            problem_types=environ.get("LAMBDA_PG_API_PROBLEM_TYPES", cls.problem_types),
        )


RULES: Final = Rules.from_env(os.environ)
"""The rules of this process."""
