"""Answer a caller that waits for a stack when the stack has changed, and change outputs alone."""

import asyncio
import re
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

UNCHANGED = "didn't contain changes"
"""In the reason of a change set that fails because it changes nothing."""

Handle = Callable[[str, str, dict[str, str], bytes, dict[str, Any]], Awaitable[Response]]


def install() -> None:
    """Replace how MiniStack answers DescribeStacks and CreateChangeSet."""
    _hold_answers()
    _accept_changed_outputs()


def _hold_answers() -> None:
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


def _accept_changed_outputs() -> None:
    """Accept a change set that changes nothing but outputs, as CloudFormation does.

    MiniStack rejects it as one without changes. An export that a stack of the same deployment
    imports would then not exist.
    """
    table = import_module(f"{hooks.STACKS}.handlers")._ACTION_HANDLERS
    find = import_module(f"{hooks.STACKS}.changesets")._find_change_set
    stacks: Any = import_module(hooks.STACKS)._stacks
    create = table["CreateChangeSet"]

    def create_change_set(params: dict[str, Any]) -> Response:
        response: Response = create(params)
        created = re.search(rb"<Id>(.+?)</Id>", response[2])
        _, made = find(created[1].decode()) if created else (None, None)
        if made and UNCHANGED in made["StatusReason"]:
            before = stacks.get(made["StackName"])["_template"].get("Outputs")
            if before != made["_template"].get("Outputs"):
                made |= {"Status": "CREATE_COMPLETE", "ExecutionStatus": "AVAILABLE"}
                made["StatusReason"] = ""
        return response

    table["CreateChangeSet"] = create_change_set
