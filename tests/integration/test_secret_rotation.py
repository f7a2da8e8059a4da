"""Secrets Manager of the control plane: versions, stages, and rotations by a function."""

import secrets
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from botocore.exceptions import ClientError

from lambda_pg_cdk.local import processes
from tests.support.control_plane import (
    ControlPlane,
    Invocation,
    attribute,
    function,
    output,
)

STEPS = ["createSecret", "setSecret", "testSecret", "finishSecret"]


class Secret:
    """One secret, in a few verbs."""

    def __init__(self, plane: ControlPlane, value: str = "old") -> None:
        """Create it."""
        self.client = plane.client("secretsmanager")
        name = f"secret-{secrets.token_hex(4)}"
        self.arn: str = self.client.create_secret(Name=name, SecretString=value)["ARN"]

    def value(self, **asked: str) -> str:
        """Read a value: the current one, or that of a version or a stage."""
        return str(self.client.get_secret_value(SecretId=self.arn, **asked)["SecretString"])

    def put(self, value: str, token: str, *stages: str) -> None:
        """Write a version."""
        asked = {"VersionStages": list(stages)} if stages else {}
        self.client.put_secret_value(
            SecretId=self.arn, SecretString=value, ClientRequestToken=token, **asked
        )

    def stages(self) -> dict[str, set[str]]:
        """Return the labels of each version."""
        found = self.client.describe_secret(SecretId=self.arn)["VersionIdsToStages"]
        return {version: set(labels) for version, labels in found.items()}

    def version_of(self, stage: str) -> str | None:
        """Return the version that has a label."""
        return next((v for v, labels in self.stages().items() if stage in labels), None)

    def rotate(self, function: str, **asked: Any) -> str:
        """Begin a rotation; return the new version."""
        answer = self.client.rotate_secret(SecretId=self.arn, RotationLambdaARN=function, **asked)
        return str(answer.get("VersionId", ""))

    def described(self) -> dict[str, Any]:
        """Describe it."""
        return dict(self.client.describe_secret(SecretId=self.arn))


@pytest.fixture
def secret(plane: ControlPlane) -> Iterator[Secret]:
    """A secret with the value `old`."""
    made = Secret(plane)
    yield made
    made.client.delete_secret(SecretId=made.arn, ForceDeleteWithoutRecovery=True)


@pytest.fixture
def rotator(plane: ControlPlane) -> str:
    """The ARN of a deployed function; the test plays what it does."""
    outputs = {"Arn": output(attribute("Function", "Arn"))}
    return plane.deploy("rotator", {"Function": function()}, Outputs=outputs)["Arn"]


def token() -> str:
    """Return the name of a new version."""
    return secrets.token_hex(16)


def refused(kind: str, call: Callable[[], Any]) -> None:
    """Expect an error of Secrets Manager's by its name."""
    with pytest.raises(ClientError) as caught:
        call()
    assert caught.value.response["Error"]["Code"] == kind, caught.value


# Versions and stages


def test_a_label_is_on_one_version_only(secret: Secret) -> None:
    """A second pending version takes the label from the first."""
    first, second = token(), token()
    secret.put("first", first, "AWSPENDING")
    secret.put("second", second, "AWSPENDING")
    assert secret.version_of("AWSPENDING") == second
    assert first not in secret.stages()
    assert secret.value() == "old"


def test_a_current_version_with_another_label_has_both(secret: Secret) -> None:
    """And the former one is the previous one."""
    old = secret.version_of("AWSCURRENT")
    new = token()
    secret.put("new", new, "AWSCURRENT", "mine")
    assert secret.stages() == {new: {"AWSCURRENT", "mine"}, old: {"AWSPREVIOUS"}}


def test_a_version_is_read_by_its_own_stage_only(secret: Secret) -> None:
    """Both together have to fit."""
    pending = token()
    secret.put("new", pending, "AWSPENDING")
    assert secret.value(VersionId=pending) == "new"
    assert secret.value(VersionStage="AWSPENDING") == "new"
    assert secret.value(VersionId=pending, VersionStage="AWSPENDING") == "new"
    refused(
        "InvalidRequestException",
        lambda: secret.value(VersionId=pending, VersionStage="AWSCURRENT"),
    )
    refused("ResourceNotFoundException", lambda: secret.value(VersionStage="mine"))


def test_a_version_is_written_once(secret: Secret) -> None:
    """The same again is no error, another value under the same token is one."""
    pending = token()
    secret.put("new", pending, "AWSPENDING")
    secret.put("new", pending, "AWSPENDING")
    refused("ResourceExistsException", lambda: secret.put("other", pending, "AWSPENDING"))
    assert secret.value(VersionId=pending) == "new"


def test_moving_the_current_label_makes_the_former_version_the_previous(secret: Secret) -> None:
    """It moves only from where it is."""
    old, new = secret.version_of("AWSCURRENT"), token()
    secret.put("new", new, "AWSPENDING")

    def move(**asked: str) -> None:
        secret.client.update_secret_version_stage(
            SecretId=secret.arn, VersionStage="AWSCURRENT", MoveToVersionId=new, **asked
        )

    refused("InvalidParameterException", move)
    refused("InvalidParameterException", lambda: move(RemoveFromVersionId=new))
    move(RemoveFromVersionId=str(old))
    assert (secret.value(), secret.value(VersionStage="AWSPREVIOUS")) == ("new", "old")


# Rotations


class Rotator:
    """A rotation function as AWS's templates write it; `fails` names the step that raises."""

    def __init__(self, secret: Secret, fails: str = "") -> None:
        """Rotate this secret."""
        self.secret = secret
        self.fails = fails
        self.seen: list[tuple[str, str | None]] = []  # steps, and the pending value at their start

    def __call__(self, invocation: Invocation) -> None:
        """Run one step."""
        event = invocation.event
        assert event["SecretId"] == self.secret.arn
        version = event["ClientRequestToken"]
        if "AWSPENDING" not in self.secret.stages().get(version, ()):
            raise ValueError("the version is not pending")
        self.seen.append((event["Step"], self.pending(version)))
        if event["Step"] == self.fails:
            raise RuntimeError("canary of the rotation")
        if event["Step"] == "createSecret" and self.pending(version) is None:
            self.secret.put("new", version, "AWSPENDING")
        if event["Step"] == "finishSecret":
            self.secret.client.update_secret_version_stage(
                SecretId=self.secret.arn,
                VersionStage="AWSCURRENT",
                MoveToVersionId=version,
                RemoveFromVersionId=self.secret.version_of("AWSCURRENT"),
            )

    def pending(self, version: str) -> str | None:
        """Read the pending value as AWS's templates do."""
        try:
            return self.secret.value(VersionId=version, VersionStage="AWSPENDING")
        except self.secret.client.exceptions.ResourceNotFoundException:
            return None


def wait_for(plane: ControlPlane, condition: Callable[[], bool], what: str) -> None:
    """Wait until something holds."""
    processes.wait_until(condition, 20, f"{what}: {plane.daemon.invocations}")


def has_rotated(secret: Secret) -> bool:
    """Tell whether a rotation has ended."""
    return "LastRotatedDate" in secret.described()


def test_a_rotation_calls_the_function_four_times(
    plane: ControlPlane, secret: Secret, rotator: str
) -> None:
    """RotateSecret answers at once; the value comes from createSecret, and finishSecret ends it."""
    plane.daemon.function = steps = Rotator(secret)
    old, asked = secret.version_of("AWSCURRENT"), token()
    assert secret.rotate(rotator, ClientRequestToken=asked) == asked
    wait_for(plane, lambda: "LastRotatedDate" in secret.described(), "the end of the rotation")
    assert [step for step, _ in steps.seen] == STEPS
    assert [pending for _, pending in steps.seen] == [None, "new", "new", "new"]
    assert secret.value() == "new"
    assert (secret.version_of("AWSCURRENT"), secret.version_of("AWSPREVIOUS")) == (asked, old)
    assert secret.described()["RotationEnabled"] is True


def test_one_function_rotates_several_secrets_at_the_same_time(
    plane: ControlPlane, rotator: str
) -> None:
    """Each has its own version and its own four calls; none waits for another one."""
    rotated = [Secret(plane) for _ in range(3)]
    steps = {each.arn: Rotator(each) for each in rotated}
    all_begun = threading.Barrier(len(rotated), timeout=20)

    def rotate(invocation: Invocation) -> None:
        if invocation.event["Step"] == "createSecret":
            all_begun.wait()
        steps[invocation.event["SecretId"]](invocation)

    plane.daemon.function = rotate
    versions = [each.rotate(rotator) for each in rotated]
    for each, version in zip(rotated, versions, strict=True):
        wait_for(plane, partial(has_rotated, each), "the end of a rotation")
        assert [step for step, _ in steps[each.arn].seen] == STEPS
        assert (each.value(), each.version_of("AWSCURRENT")) == ("new", version)
        each.client.delete_secret(SecretId=each.arn, ForceDeleteWithoutRecovery=True)
    assert len(set(versions)) == len(rotated)


def test_it_answers_before_the_first_step_has_ended(
    plane: ControlPlane, secret: Secret, rotator: str
) -> None:
    """Whoever asked does not wait for the function, which may ask Secrets Manager itself."""
    answered: list[str] = []

    def first(invocation: Invocation) -> None:
        wait_for(plane, lambda: bool(answered), "the answer")
        raise RuntimeError("enough")

    plane.daemon.function = first
    answered.append(secret.rotate(rotator))
    wait_for(plane, lambda: len(plane.daemon.invocations) == 1, "the first step")


@pytest.mark.parametrize("step", STEPS)
def test_a_failing_step_leaves_the_pending_version(
    plane: ControlPlane, secret: Secret, rotator: str, step: str
) -> None:
    """No step after it runs, the current value stays, and the next request tries again."""
    plane.daemon.function = steps = Rotator(secret, fails=step)
    asked = secret.rotate(rotator)
    until = STEPS[: STEPS.index(step) + 1]
    wait_for(plane, lambda: [s for s, _ in steps.seen] == until, step)
    assert secret.version_of("AWSPENDING") == asked
    assert secret.value() == "old"

    steps.fails, steps.seen = "", []

    def again() -> bool:
        with pytest.raises(ClientError, match="A previous rotation isn't complete"):
            secret.rotate(rotator)
        return bool(steps.seen)

    wait_for(plane, again, "another attempt")
    wait_for(plane, lambda: secret.value() == "new", "the rotation")
    assert secret.version_of("AWSCURRENT") == asked
    log = plane.log.read_text()
    assert step in log
    assert "canary of the rotation" not in log


def test_without_a_function_there_is_no_rotation(plane: ControlPlane, secret: Secret) -> None:
    """Nor with one that does not exist."""
    ask = secret.client.rotate_secret
    refused("InvalidRequestException", lambda: ask(SecretId=secret.arn))
    missing = "arn:aws:lambda:us-east-1:000000000000:function:missing"
    refused("AccessDeniedException", lambda: secret.rotate(missing))
    assert list(secret.stages().values()) == [{"AWSCURRENT"}]
    assert secret.described()["RotationEnabled"] is False


def schedule(rotator: Any, **properties: Any) -> dict[str, Any]:
    """Return a secret with a schedule."""
    return {
        "Secret": {"Type": "AWS::SecretsManager::Secret", "Properties": {"SecretString": "old"}},
        "Schedule": {
            "Type": "AWS::SecretsManager::RotationSchedule",
            "Properties": {
                "SecretId": {"Ref": "Secret"},
                "RotationLambdaARN": rotator,
                "RotationRules": {"ScheduleExpression": "rate(30 days)"},
                **properties,
            },
        },
    }


def test_a_schedule_is_seen_on_the_secret_and_can_wait(plane: ControlPlane, rotator: str) -> None:
    """With RotateImmediatelyOnUpdate off nothing is called; the schedule goes with its stack."""
    resources = schedule(rotator, RotateImmediatelyOnUpdate=False)
    told = plane.deploy("waits", resources, Outputs={"Arn": output({"Ref": "Secret"})})
    described = plane.client("secretsmanager").describe_secret(SecretId=told["Arn"])
    assert described["RotationEnabled"] is True
    assert described["RotationLambdaARN"] == rotator
    assert described["RotationRules"] == {"ScheduleExpression": "rate(30 days)"}
    assert list(described["VersionIdsToStages"].values()) == [["AWSCURRENT"]]
    assert plane.daemon.invocations == []
    del resources["Schedule"]
    plane.deploy("waits", resources, Outputs={"Arn": output({"Ref": "Secret"})})
    described = plane.client("secretsmanager").describe_secret(SecretId=told["Arn"])
    assert described["RotationEnabled"] is False


def test_a_schedule_rotates_at_once_where_nothing_says_otherwise(
    plane: ControlPlane, rotator: str
) -> None:
    """As CloudFormation's default is."""
    plane.daemon.function = lambda _: None
    plane.deploy("rotates", schedule(rotator))
    wait_for(plane, lambda: len(plane.daemon.invocations) == 4, "four steps")
    assert [each.event["Step"] for each in plane.daemon.invocations] == STEPS


def test_the_function_may_be_an_alias(plane: ControlPlane, secret: Secret) -> None:
    """Then the version that it points at is called."""
    published = {"FunctionName": {"Ref": "Function"}}
    told = plane.deploy(
        "aliased",
        {
            "Function": function(),
            "Version": {"Type": "AWS::Lambda::Version", "Properties": published},
            "Alias": {
                "Type": "AWS::Lambda::Alias",
                "Properties": {
                    **published,
                    "FunctionVersion": attribute("Version", "Version"),
                    "Name": "live",
                },
            },
        },
        Outputs={"Arn": output({"Ref": "Alias"})},
    )
    secret.rotate(told["Arn"])
    wait_for(plane, lambda: len(plane.daemon.invocations) == 4, "four steps")
    assert {each.version for each in plane.daemon.invocations} == {"1"}
