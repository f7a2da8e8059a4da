"""Run a deployment's migration for CloudFormation, and answer with the migration's own error.

It runs what the resource's properties name: the migration, or before an RDS Proxy the function that
makes the proxy's login.

CloudFormation invokes it with the events of a custom resource and waits for what is PUT to the
event's ResponseURL: https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/crpg-ref.html

A function is invoked once. What is retried is an invocation that Lambda refused: the function is
Inactive or Pending, a throttle, a permission that is not known everywhere yet. A connection that is
lost later is not retried, because the function may be running. Lambda may deliver an event twice
(https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-error-handling.html). Then the
locks of both functions in the database make the second one wait, and it finds nothing to do.

In a stack that rolls back nothing is run: an earlier deployment has made the schema of the version
that it goes back to, and the login. Migrations are additive.
"""

import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import boto3
from botocore.client import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
)

ANSWERING = 30.0
"""Seconds of this function's timeout that are left to answer CloudFormation."""

STARTING = 30.0
"""Seconds that an invocation may take beyond the function's timeout: Lambda gives a new
environment 10 s to start, which do not count, and the answer has to travel.
https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtime-environment.html"""

LONGEST_PAUSE = 10.0
"""Longest time between two attempts, in seconds."""

CONNECTING = 5.0
"""Seconds that a connect to AWS may take."""

LOOKING, LOOKS = 10.0, 5
"""Seconds that CloudFormation may take to return the stack's status, and the number of attempts."""

REASON_CHARACTERS = 800
"""Characters of an error that are sent: CloudFormation accepts an answer of 4,096 bytes.
https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/crpg-ref-responses.html"""

ANSWERS = 5
"""Attempts to PUT the answer."""

PASSING = frozenset(
    {
        # The function is Pending, as a new one is, or an Inactive one that was invoked.
        "ResourceConflictException",
        # The function is Inactive: it was idle for long, and Lambda has removed its network.
        "ResourceNotReadyException",
        # The function's code is being prepared. Not documented; seen in public reports.
        "CodeArtifactUserPendingException",
        "EC2ThrottledException",
        "EC2UnexpectedException",
        # A role's new policy is not known everywhere yet, for some seconds. Its names at Lambda and
        # at CloudFormation:
        # https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot.html
        "AccessDeniedException",
        "AccessDenied",
        # A throttle of CloudFormation's, which has the status 400.
        "Throttling",
    }
)
"""Errors that are temporary.
https://docs.aws.amazon.com/lambda/latest/api/API_Invoke.html
https://docs.aws.amazon.com/lambda/latest/dg/functions-states.html"""

PASSING_STATUS = frozenset({429, 500, 503})
"""HTTP statuses of throttles and of failures of the service. Not 502, which Lambda also uses for
permanent errors, such as a missing permission for network interfaces."""

logger = logging.getLogger("migration_provider")
logger.setLevel(logging.INFO)

Answer = TypeVar("Answer")


class ProviderError(Exception):
    """The task failed or could not be run; the message is for CloudFormation's event."""


@dataclass(frozen=True)
class Task:
    """The function to run, from the resource's properties."""

    name: str
    """Name of the task, for messages."""
    function: str
    event: dict[str, Any]
    seconds: float
    """How long the function may take."""
    logs: str
    """The function's log group, for messages."""


def handler(event: dict[str, Any], context: Any) -> None:
    """Handle an event; send CloudFormation the result, or the error, in every case."""
    try:
        said = run(event, context.get_remaining_time_in_millis() / 1000)
    except ProviderError as error:
        logger.error("%s", error)  # noqa: TRY400 - the traceback is this function's, not the cause's
        answer(event, "FAILED", str(error))
    except Exception as error:
        logger.exception("the provider failed")
        answer(event, "FAILED", f"the provider failed: {type(error).__name__}: {error}")
    else:
        logger.info("%s", said)
        answer(event, "SUCCESS", said)


def run(event: dict[str, Any], remaining: float) -> str:
    """Run the migration if there is one, within `remaining` seconds; return what was done.

    Raise `ProviderError` with the migration's message.
    """
    if event["RequestType"] == "Delete":
        return "nothing is deleted: schema and roles stay"
    properties = event["ResourceProperties"]
    task = Task(
        name=properties.get("Task", "migration"),
        function=properties["Function"],
        event=properties.get("Event", {}),
        seconds=float(properties["Seconds"]),
        logs=properties["Logs"],
    )
    until = time.monotonic() + remaining - ANSWERING - STARTING - task.seconds
    if rolls_back(event["StackId"], until):
        return f"the stack rolls back to what an earlier {task.name} has made: nothing was run"
    return invoke(task, until)


def rolls_back(stack: str, until: float) -> bool:
    """Ask whether the stack is rolling back: the event does not say so."""
    client = _client("cloudformation", LOOKING, attempts=LOOKS)
    (found,) = patiently(lambda: client.describe_stacks(StackName=stack)["Stacks"], until, stack)
    return "ROLLBACK" in found["StackStatus"]


def invoke(task: Task, until: float) -> str:
    """Invoke the task's function once; start before `until`, a time of the monotonic clock.

    Return the function's answer.
    """
    client, payload = _client("lambda", task.seconds + STARTING), json.dumps(task.event).encode()
    try:
        response = patiently(
            lambda: client.invoke(FunctionName=task.function, Payload=payload), until, task.function
        )
        text = response["Payload"].read().decode(errors="replace")
    except BotoCoreError as error:
        raise ProviderError(
            f"the connection to the {task.name} was lost, and it may be running still or have"
            f" ended: {error}. The log group {task.logs} tells. Deploy again: what is done already"
            " is not done again"
        ) from error
    if "FunctionError" in response:
        raise ProviderError(f"{_cut(_message(text))} (log group {task.logs})")
    return _cut(f"the {task.name} answered {text}")


def patiently(call: Callable[[], Answer], until: float, what: str) -> Answer:
    """Retry a call while its error is temporary, until a time of the monotonic clock.

    Raise `ProviderError` for an error of AWS's that stays, and `BotoCoreError` for a lost
    connection, after which the call may have been carried out.
    """
    pause = 1.0
    while True:
        try:
            return call()
        except (ClientError, ConnectTimeoutError, EndpointConnectionError) as error:
            late = time.monotonic() + pause > until
            if late or not _passes(error):
                raise ProviderError(_not_run(error, what, late=late)) from error
            logger.info("%s: retried in %.0f s: %s", what, pause, error)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _passes(error: Exception) -> bool:
    if not isinstance(error, ClientError):
        return True
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return error.response["Error"].get("Code") in PASSING or status in PASSING_STATUS


def _not_run(error: Exception, what: str, *, late: bool) -> str:
    waited = " and did not pass in the time there was" if late else ""
    return _cut(
        f"nothing was run, and nothing has changed. {what}: {error}{waited}. See"
        ' docs/operations.md, "A migration failed"'
    )


def _client(service: str, read_timeout: float, attempts: int = 1) -> Any:
    """Make a client that sends a request up to `attempts` times if no answer arrives.

    The connection is silent as long as the migration runs:
    https://docs.aws.amazon.com/lambda/latest/api/API_Invoke.html asks for keep-alive.
    """
    config = Config(
        connect_timeout=CONNECTING,
        read_timeout=read_timeout,
        tcp_keepalive=True,
        retries={"mode": "standard", "total_max_attempts": attempts},
    )
    return boto3.client(service, config=config)


def _message(payload: str) -> str:
    """Return the error's message from Lambda's answer about a failed function."""
    try:
        return str(json.loads(payload)["errorMessage"])
    except (ValueError, KeyError, TypeError):
        return payload


def _cut(text: str) -> str:
    return text if len(text) <= REASON_CHARACTERS else f"{text[:REASON_CHARACTERS]} …"


def answer(event: dict[str, Any], status: str, reason: str) -> None:
    """PUT the answer; raise if that fails: CloudFormation then waits for ServiceTimeout."""
    body = {
        "Status": status,
        "Reason": reason,
        # With another id CloudFormation would replace the resource.
        "PhysicalResourceId": event.get("PhysicalResourceId") or event["LogicalResourceId"],
        **{name: event[name] for name in ("StackId", "RequestId", "LogicalResourceId")},
    }
    request = urllib.request.Request(  # noqa: S310 - CloudFormation's address
        event["ResponseURL"],
        data=json.dumps(body, ensure_ascii=False).encode(),
        method="PUT",
        # The address is signed for a request without one.
        headers={"Content-Type": ""},
    )
    for left in reversed(range(ANSWERS)):
        try:
            with urllib.request.urlopen(request, timeout=CONNECTING):  # noqa: S310 - as above
                return
        except OSError as error:
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if refused or not left:
                raise
            logger.warning("CloudFormation did not accept the answer, trying again: %s", error)
        time.sleep(1)
