"""One event that an environment runs, and its outcome."""

import asyncio
import json
from dataclasses import dataclass
from typing import Literal

Failure = Literal["handled", "timeout", "exit", "init"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of an invocation: the function's payload, or the payload of an error."""

    payload: bytes
    failure: Failure | None = None
    request_id: str = ""

    @staticmethod
    def failed(failure: Failure, error_type: str, message: str, request_id: str = "") -> "Outcome":
        """Describe an error in Lambda's format."""
        error = {"errorType": error_type, "errorMessage": message}
        return Outcome(json.dumps(error).encode(), failure, request_id)


@dataclass(slots=True)
class Invocation:
    """One event that an environment runs."""

    event: bytes
    function_arn: str
    timeout: float  # seconds
    request_id: str
    outcome: asyncio.Future[Outcome]
    deadline: float = 0.0  # since the epoch; known when it is delivered
    answer: Outcome | None = None
