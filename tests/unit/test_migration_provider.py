"""The provider that runs the migration for CloudFormation, against servers that act as AWS."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lambda_pg_cdk.operations.migration_provider import handler as provider

FUNCTION = "arn:aws:lambda:eu-west-1:111122223333:function:migrate:7"

LONGEST = 900
"""Lambda's longest timeout of a function, in seconds."""
STACK = "arn:aws:cloudformation:eu-west-1:111122223333:stack/LambdaPg-dev-Api/guid"
MIGRATED = {"revisions": ["lambda_pg_0002"], "applied": ["lambda_pg_0002"], "warnings": []}
FAILED = {"errorMessage": "migration 0003 failed and the schema is as it was: no such table"}


@dataclass
class Reply:
    """What the server answers to one invocation."""

    status: int = 200
    body: object = None
    error: str = ""
    """The code of an error of the service's."""
    function_error: str = ""
    lost: bool = False
    """Whether the connection ends without an answer."""
    waits: threading.Event | None = None
    """What has to happen before the answer comes."""


@dataclass
class Aws:
    """Lambda, CloudFormation and the address that answers are PUT to, on one port."""

    invocations: list[Reply] = field(default_factory=list)
    """What Lambda answers; the last one for ever."""
    status: str = "UPDATE_IN_PROGRESS"
    looks: list[int] = field(default_factory=list)
    """HTTP statuses with which CloudFormation refuses the first looks at the stack."""
    refusals: list[int] = field(default_factory=list)
    """HTTP statuses with which the first answers are refused."""
    invoked: list[str] = field(default_factory=list)
    """Paths of the invocations that came."""
    payloads: list[dict[str, Any]] = field(default_factory=list)
    """What the functions were given."""
    looked: int = 0
    answers: list[dict[str, Any]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    url: str = ""
    slept: float = 0.0
    """Seconds that the provider has paused."""

    def event(self, kind: str = "Update", seconds: int = 300) -> dict[str, Any]:
        """Make an event as CloudFormation does: numbers come as text."""
        return {
            "RequestType": kind,
            "RequestId": "request",
            "StackId": STACK,
            "LogicalResourceId": "MigrationRun",
            "PhysicalResourceId": "physical",
            "ResponseURL": f"{self.url}/answer?signature=x",
            "ResourceProperties": {
                "Function": FUNCTION,
                "Seconds": str(seconds),
                "Logs": "MigrateLogs",
            },
        }

    @property
    def answer(self) -> dict[str, Any]:
        """Give the only answer."""
        (answer,) = self.answers
        return answer


class Server(ThreadingHTTPServer):
    """What listens for `aws`."""

    def __init__(self, aws: Aws) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.aws = aws


class Handler(BaseHTTPRequestHandler):
    """Answers one request as Lambda, as CloudFormation or as S3."""

    @property
    def aws(self) -> Aws:
        """What to answer, and where to note what came."""
        return cast(Server, self.server).aws

    def do_PUT(self) -> None:
        """Take an answer to CloudFormation."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        # S3 refuses a body whose type is not the signed one.
        assert self.headers["Content-Type"] == ""
        if self.aws.refusals:
            self.reply(self.aws.refusals.pop(0), b"")
            return
        self.aws.answers.append(json.loads(body))
        self.aws.sizes.append(len(body))
        self.reply(200, b"")

    def do_POST(self) -> None:
        """Take a call of an API."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.startswith("/2015-03-31/functions/"):
            self.aws.payloads.append(json.loads(body))
            self.invoke()
        else:
            self.describe_stack()

    def invoke(self) -> None:
        """Answer as Lambda does."""
        aws = self.aws
        aws.invoked.append(self.path)
        reply = aws.invocations.pop(0) if len(aws.invocations) > 1 else aws.invocations[0]
        if reply.waits is not None:
            reply.waits.wait(60)
        if reply.lost:
            return
        headers = {"X-Amzn-ErrorType": reply.error} if reply.error else {}
        if reply.function_error:
            headers["X-Amz-Function-Error"] = reply.function_error
        body = reply.body if reply.body is not None else {"message": "as tests say"}
        self.reply(reply.status, json.dumps(body).encode(), headers)

    def describe_stack(self) -> None:
        """Answer as CloudFormation does."""
        self.aws.looked += 1
        if self.aws.looks:
            status = self.aws.looks.pop(0)
            code = "AccessDenied" if status == 403 else "Failure"
            text = f"<ErrorResponse><Error><Code>{code}</Code></Error></ErrorResponse>"
            self.reply(status, text.encode())
            return
        text = (
            "<DescribeStacksResponse><DescribeStacksResult><Stacks><member>"
            f"<StackName>x</StackName><StackStatus>{self.aws.status}</StackStatus>"
            "<CreationTime>2026-01-01T00:00:00Z</CreationTime>"
            "</member></Stacks></DescribeStacksResult></DescribeStacksResponse>"
        )
        self.reply(200, text.encode())

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Send an answer."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its own name
        """Say nothing."""


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    """Stand in for AWS; pauses between tries take no time."""
    state = Aws()
    server = Server(state)
    state.url = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "AWS_ENDPOINT_URL": state.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "eu-west-1",
    }.items():
        monkeypatch.setenv(name, value)

    def sleep(seconds: float) -> None:
        state.slept += seconds

    fake = SimpleNamespace(monotonic=lambda: state.slept, sleep=sleep)
    monkeypatch.setattr(provider, "time", fake)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def handle(event: dict[str, Any], remaining: float = 900) -> None:
    """Have the provider handle an event with so many seconds left."""
    context = SimpleNamespace(get_remaining_time_in_millis=lambda: remaining * 1000)
    provider.handler(event, context)


@pytest.mark.parametrize("kind", ["Create", "Update"])
def test_a_migration_is_run_and_its_answer_told(aws: Aws, kind: str) -> None:
    """CloudFormation hears of success, under the resource's own id."""
    aws.invocations = [Reply(body=MIGRATED)]
    event = aws.event(kind)
    if kind == "Create":
        del event["PhysicalResourceId"]
    handle(event)
    assert len(aws.invoked) == 1
    assert "function%3Amigrate%3A7" in aws.invoked[0]
    assert aws.answer == {
        "Status": "SUCCESS",
        "Reason": f"the migration answered {json.dumps(MIGRATED)}",
        "PhysicalResourceId": "MigrationRun" if kind == "Create" else "physical",
        "StackId": STACK,
        "RequestId": "request",
        "LogicalResourceId": "MigrationRun",
    }


def test_a_long_answer_is_cut(aws: Aws) -> None:
    """CloudFormation accepts 4,096 bytes; the warnings of many tables are more."""
    warnings = [f"table t{number}: functions see no row … add a policy" for number in range(99)]
    aws.invocations = [Reply(body=MIGRATED | {"warnings": warnings})]
    handle(aws.event())
    assert aws.answer["Status"] == "SUCCESS"
    assert aws.answer["Reason"].endswith(" …")
    assert len(json.dumps(aws.answer)) < 4096


LOGIN = {"Step": "admitCurrent", "SecretId": "arn:aws:secretsmanager:eu-west-1:1:secret:app"}


def login(aws: Aws) -> dict[str, Any]:
    """Make an event of the resource that lets the login of an RDS Proxy in."""
    event = aws.event(seconds=60)
    event["ResourceProperties"] |= {"Task": "login", "Event": LOGIN, "Server": ["host", "id"]}
    return event


def test_a_function_is_given_the_event_that_the_resource_names(aws: Aws) -> None:
    """The login of an RDS Proxy is a step of the rotation function; a migration gets nothing."""
    aws.invocations = [Reply()]
    handle(login(aws))
    handle(aws.event())
    assert aws.payloads == [LOGIN, {}]
    assert aws.answers[0]["Reason"].startswith("the login answered")
    assert aws.answers[1]["Reason"].startswith("the migration answered")


def test_a_rollback_lets_no_login_in(aws: Aws) -> None:
    """The server that the stack goes back to has it."""
    aws.status = "UPDATE_ROLLBACK_IN_PROGRESS"
    handle(login(aws))
    assert (aws.invoked, aws.answer["Status"]) == ([], "SUCCESS")


def test_the_failure_has_the_migration_s_own_message(aws: Aws) -> None:
    """It comes first, and where to read more after it; a failed migration is not run again."""
    aws.invocations = [Reply(body=FAILED, function_error="Unhandled")]
    handle(aws.event())
    assert len(aws.invoked) == 1
    assert aws.answer["Status"] == "FAILED"
    assert aws.answer["Reason"] == f"{FAILED['errorMessage']} (log group MigrateLogs)"


@pytest.mark.parametrize(
    "message",
    ["\N{SNAKE}" * 20_000, "x" * 20_000, "\N{LATIN SMALL LETTER U WITH DIAERESIS}\n" * 9_000],
)
def test_a_long_message_fits_into_the_answer(aws: Aws, message: str) -> None:
    """CloudFormation takes 4,096 bytes; the beginning says what is wrong."""
    aws.invocations = [Reply(body={"errorMessage": message}, function_error="Unhandled")]
    handle(aws.event())
    assert aws.sizes[0] <= 4096
    assert aws.answer["Reason"].startswith(message[:500])


def test_a_failure_without_a_message_is_told_as_it_is(aws: Aws) -> None:
    """Whatever Lambda says is better than nothing."""
    aws.invocations = [Reply(body=["odd"], function_error="Unhandled")]
    handle(aws.event())
    assert aws.answer["Reason"] == '["odd"] (log group MigrateLogs)'


def test_a_migration_that_takes_all_of_its_time_is_invoked_once(
    aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that never comes is not asked for again, and the error says what is not known."""
    never = threading.Event()
    aws.invocations = [Reply(waits=never, lost=True)]
    monkeypatch.setattr(provider, "STARTING", 0.2)
    handle(aws.event(seconds=1))
    never.set()
    assert len(aws.invoked) == 1
    assert aws.answer["Status"] == "FAILED"
    assert "may be running still" in aws.answer["Reason"]
    assert "MigrateLogs" in aws.answer["Reason"]


def test_a_connection_lost_in_between_is_not_tried_again(aws: Aws) -> None:
    """The migration may be running."""
    aws.invocations = [Reply(lost=True)]
    handle(aws.event())
    assert len(aws.invoked) == 1
    assert aws.answer["Status"] == "FAILED"
    assert "may be running still" in aws.answer["Reason"]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (409, "ResourceConflictException"),
        (502, "ResourceNotReadyException"),
        (429, "TooManyRequestsException"),
        (502, "EC2ThrottledException"),
        (403, "AccessDeniedException"),
        (500, "ServiceException"),
        (503, "ServiceUnavailableException"),
    ],
)
def test_what_passes_by_itself_is_retried(aws: Aws, status: int, error: str) -> None:
    """Inactive, then Pending, a throttle, a permission that is new: then the migration runs."""
    aws.invocations = [Reply(status, error=error)] * 6 + [Reply(body=MIGRATED)]
    handle(aws.event())
    assert len(aws.invoked) == 7
    assert aws.answer["Status"] == "SUCCESS"


def test_a_function_that_never_wakes_is_an_error_that_names_its_state(aws: Aws) -> None:
    """Retrying ends while an invocation could still be waited for."""
    message = "The function is currently in the following state: Pending"
    aws.invocations = [Reply(409, {"message": message}, error="ResourceConflictException")]
    handle(aws.event(seconds=720), remaining=LONGEST)
    assert 5 < len(aws.invoked) < 30
    assert aws.slept <= LONGEST - 720 - provider.STARTING - provider.ANSWERING
    assert aws.answer["Status"] == "FAILED"
    assert "nothing has changed" in aws.answer["Reason"]
    assert message in aws.answer["Reason"]


@pytest.mark.parametrize("error", ["ResourceNotFoundException", "ENILimitReachedException"])
def test_what_does_not_pass_is_told_at_once(aws: Aws, error: str) -> None:
    """Without retries."""
    aws.invocations = [Reply(404 if "Found" in error else 502, error=error)]
    handle(aws.event())
    assert len(aws.invoked) == 1
    assert aws.answer["Status"] == "FAILED"
    assert error in aws.answer["Reason"]


@pytest.mark.parametrize(
    "status", ["UPDATE_ROLLBACK_IN_PROGRESS", "ROLLBACK_IN_PROGRESS", "IMPORT_ROLLBACK_IN_PROGRESS"]
)
def test_a_rollback_runs_nothing_and_succeeds(aws: Aws, status: str) -> None:
    """Whatever the database and the old version are like: their schema was reached before."""
    aws.status = status
    handle(aws.event())
    assert aws.invoked == []
    assert aws.answer["Status"] == "SUCCESS"
    assert "rolls back" in aws.answer["Reason"]


def test_a_deployment_after_a_rollback_migrates(aws: Aws) -> None:
    """Its state says so: only a rollback that is going on has the word in it."""
    aws.status = "UPDATE_IN_PROGRESS"
    aws.invocations = [Reply(body=MIGRATED)]
    handle(aws.event())
    assert len(aws.invoked) == 1


def test_nothing_is_deleted(aws: Aws) -> None:
    """Neither with the stack nor when the creation failed; nobody is asked."""
    handle(aws.event("Delete"))
    assert (aws.invoked, aws.looked) == ([], 0)
    assert aws.answer["Status"] == "SUCCESS"


@pytest.mark.parametrize("status", [403, 500, 503])
def test_a_stack_that_cannot_be_looked_at_is_looked_at_again(aws: Aws, status: int) -> None:
    """In the first seconds the permission may not be known; the service may fail."""
    aws.looks = [status] * 2
    aws.invocations = [Reply(body=MIGRATED)]
    handle(aws.event())
    assert aws.looked == 3
    assert aws.answer["Status"] == "SUCCESS"


def test_an_answer_that_is_not_taken_is_sent_again(aws: Aws) -> None:
    """A failure of S3's own passes; without the answer CloudFormation would wait half an hour."""
    aws.refusals = [503, 500]
    aws.invocations = [Reply(body=MIGRATED)]
    handle(aws.event())
    assert aws.answer["Status"] == "SUCCESS"
    assert len(aws.invoked) == 1


def test_an_event_that_makes_no_sense_is_answered(aws: Aws) -> None:
    """Our own mistake is reported; otherwise the stack would hang."""
    event = aws.event()
    del event["ResourceProperties"]["Seconds"]
    handle(event)
    assert aws.answer["Status"] == "FAILED"
    assert aws.answer["Reason"] == "the provider failed: KeyError: 'Seconds'"
