"""Answer a caller that waits for a stack as soon as the stack has changed."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib import import_module
from typing import Any
from urllib.parse import parse_qsl

from lambda_pg_cdk.local.control_plane import hooks
from lambda_pg_cdk.local.control_plane.handlers import Response

HELD_SECONDS = 4.0
LOOK_SECONDS = 0.02
FUNCTIONS = "exec-env/AWS_Lambda"
"""In the user agent of an AWS SDK that runs in a function."""

Handle = Callable[[str, str, dict[str, str], bytes, dict[str, Any]], Awaitable[Response]]


def install() -> None:
    """Delay the answer to DescribeStacks while the stack that it names is being changed.

    The CDK command line polls every 5 s, and no stack takes that long here: a deployment of five
    stacks would mostly sleep. A function is answered at once: it may ask during a change that
    waits for the function.
    """
    module: Any = import_module(hooks.STACKS)
    resolve = import_module(f"{hooks.STACKS}.handlers")._resolve_stack
    module.handle_request = _holding(module.handle_request, resolve)


def _holding(handle: Handle, resolve: Callable[[str], dict[str, Any] | None]) -> Handle:
    async def handle_request(
        method: str, path: str, headers: dict[str, str], body: bytes, query: dict[str, Any]
    ) -> Response:
        asked = dict(parse_qsl(body.decode(errors="replace")))
        by_function = FUNCTIONS in headers.get("user-agent", "")
        if (
            asked.get("Action") == "DescribeStacks"
            and (name := asked.get("StackName"))
            and not by_function
        ):
            with suppress(TimeoutError):
                async with asyncio.timeout(HELD_SECONDS):
                    while _changing(resolve(name)):  # noqa: ASYNC110 - a stack has no event
                        await asyncio.sleep(LOOK_SECONDS)
        return await handle(method, path, headers, body, query)

    return handle_request


def _changing(stack: dict[str, Any] | None) -> bool:
    status = stack["StackStatus"] if stack else ""
    return status.endswith("_IN_PROGRESS") and status != "REVIEW_IN_PROGRESS"
