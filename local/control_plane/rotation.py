"""Rotate secrets as Secrets Manager does, with four calls of the secret's function."""

import json
import logging
import time
import uuid
from importlib import import_module
from typing import Any

from lambda_pg_cdk.local.control_plane import hooks
from lambda_pg_cdk.local.control_plane.handlers import Handlers, Made, Properties, Response, is_true

STEPS = ("createSecret", "setSecret", "testSecret", "finishSecret")
_PENDING = "AWSPENDING"
_CURRENT = "AWSCURRENT"

log = logging.getLogger("rotation")


def install(table: dict[str, Handlers]) -> None:
    """Replace MiniStack's RotateSecret, and add the type of its schedules."""
    module: Any = import_module(hooks.SECRETS)
    rotations = _Rotations(module)
    module._rotate_secret = rotations.rotate
    describe = module._describe_secret
    module._describe_secret = lambda data: rotations.describe(describe(data), data)
    table["AWS::SecretsManager::RotationSchedule"] = _schedules(rotations)


class _RefusedError(Exception):
    """A request that Secrets Manager refuses; `kind` is the name of its error."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class _Rotations:
    """The rotations of all secrets."""

    def __init__(self, module: Any) -> None:
        self._secrets = module
        self._functions: Any = import_module(hooks.LAMBDA)
        self._background = import_module("ministack.core.concurrency").spawn_background
        self._running: set[str] = set()  # ARNs

    def rotate(self, data: dict[str, Any]) -> Response:
        """Begin a rotation, and answer before its first step, as AWS does."""
        response: Response
        try:
            response = self._secrets.json_response(self._rotate(data))
        except _RefusedError as error:
            response = self._secrets.error_response_json(error.kind, str(error), 400)
        return response

    def _rotate(self, data: dict[str, Any]) -> dict[str, str]:
        secret = self._find(data.get("SecretId"))
        self._configure(secret, data)
        answer = {"ARN": str(secret["ARN"]), "Name": str(secret["Name"])}
        if not is_true(data.get("RotateImmediately", True)):
            return answer
        if (unfinished := _unfinished(secret)) is not None:
            self._begin(secret, unfinished)
            raise _RefusedError(
                "InvalidRequestException",
                "A previous rotation isn't complete. That rotation will be reattempted.",
            )
        token = str(data.get("ClientRequestToken") or uuid.uuid4())
        self._add_pending(secret, token)
        self._begin(secret, token)
        return {**answer, "VersionId": token}

    def _find(self, secret_id: str | None) -> dict[str, Any]:
        _, secret = self._secrets._resolve(secret_id)
        if secret is None:
            reason = "Secrets Manager can't find the specified secret."
            raise _RefusedError("ResourceNotFoundException", reason)
        if secret.get("DeletedDate"):
            reason = "The secret is marked for deletion."
            raise _RefusedError("InvalidRequestException", reason)
        found: dict[str, Any] = secret
        return found

    def _configure(self, secret: dict[str, Any], data: dict[str, Any]) -> None:
        """Set the function and the rules of a secret."""
        function = data.get("RotationLambdaARN") or secret.get("RotationLambdaARN")
        if not function:
            reason = "No Lambda rotation function ARN is associated with this secret."
            raise _RefusedError("InvalidRequestException", reason)
        if self._functions._get_func_record_for_ref(function)[0] is None:
            reason = f"Secrets Manager cannot invoke {function}: the function does not exist."
            raise _RefusedError("AccessDeniedException", reason)
        secret["RotationLambdaARN"] = function
        secret["RotationRules"] = data.get("RotationRules") or secret.get("RotationRules")
        secret["RotationEnabled"] = True

    def cancel(self, secret_id: str) -> None:
        """Forget a schedule; a rotation under way goes on."""
        _, secret = self._secrets._resolve(secret_id)
        if secret is not None:
            secret.update(RotationEnabled=False, RotationLambdaARN=None, RotationRules=None)

    def describe(self, response: Response, data: dict[str, Any]) -> Response:
        """Add the time at which the last rotation ended."""
        _, secret = self._secrets._resolve(data.get("SecretId"))
        if response[0] != 200 or "LastRotatedDate" not in secret:
            return response
        described = {**json.loads(response[2]), "LastRotatedDate": secret["LastRotatedDate"]}
        answer: Response = self._secrets.json_response(described)
        return answer

    # A rotation

    def _add_pending(self, secret: dict[str, Any], token: str) -> None:
        """Add a version with a label and no value: the function's first step sets the value."""
        self._secrets._remove_stage_everywhere(secret, _PENDING)
        now = int(time.time())
        empty = {"SecretString": None, "SecretBinary": None}
        secret["Versions"][token] = {**empty, "CreatedDate": now, "Stages": [_PENDING]}

    def _begin(self, secret: dict[str, Any], token: str) -> None:
        arn = secret["ARN"]
        if arn not in self._running:
            self._running.add(arn)
            self._background(self._run, secret, token, thread_name="rotation")

    def _run(self, secret: dict[str, Any], token: str) -> None:
        """Call the function for each step; a step that fails ends it and leaves AWSPENDING."""
        try:
            for step in STEPS:
                if (failure := self._call(secret, step, token)) is not None:
                    log.warning("%s of secret %s has failed: %s", step, secret["Name"], failure)
                    return
            if _CURRENT in secret["Versions"].get(token, {}).get("Stages", ()):
                secret["LastRotatedDate"] = int(time.time())
            else:
                log.warning("after its rotation %s has no new current version", secret["Name"])
        finally:
            self._running.discard(secret["ARN"])

    def _call(self, secret: dict[str, Any], step: str, token: str) -> str | None:
        """Run one step; return only the type of its error: the message could contain a password."""
        record, _, _ = self._functions._get_func_record_for_ref(secret["RotationLambdaARN"])
        if record is None:
            return "the function is gone"
        event = {"Step": step, "SecretId": secret["ARN"], "ClientRequestToken": token}
        result = self._functions._execute_function(record, event)
        if result.get("throttle"):
            return "it is throttled"
        if not result.get("error"):
            return None
        body = result.get("body")
        return str(body.get("errorType")) if isinstance(body, dict) else "an error"


def _unfinished(secret: dict[str, Any]) -> str | None:
    """Return the version that a rotation has left pending, if any."""
    for version, record in secret["Versions"].items():
        if _PENDING in record["Stages"] and _CURRENT not in record["Stages"]:
            return str(version)
    return None


def _schedules(rotations: _Rotations) -> Handlers:
    """Make the handlers of AWS::SecretsManager::RotationSchedule.

    A hosted rotation (HostedRotationLambda) is a function of AWS, which does not exist here: its
    schedule is accepted, and nothing rotates.
    """

    def schedule(props: Properties) -> Made:
        arn = str(props["SecretId"])
        if "RotationLambdaARN" in props:
            order = {
                "SecretId": arn,
                "RotationLambdaARN": props["RotationLambdaARN"],
                "RotationRules": props.get("RotationRules"),
                "RotateImmediately": props.get("RotateImmediatelyOnUpdate", True),
            }
            status, _, body = rotations.rotate(order)
            if status >= 400:
                raise ValueError(f"AWS::SecretsManager::RotationSchedule: {body!r}")
        return arn, {"Id": arn}

    def create(logical_id: str, props: Properties, stack_name: str) -> Made:  # noqa: ARG001 - MiniStack passes it
        return schedule(props)

    def update(
        physical_id: str,  # noqa: ARG001 - MiniStack passes it
        old: Properties,  # noqa: ARG001 - MiniStack passes it
        new: Properties,
        stack_name: str,  # noqa: ARG001 - MiniStack passes it
    ) -> Made:
        return schedule(new)

    def delete(physical_id: str, props: Properties) -> None:  # noqa: ARG001 - MiniStack passes it
        rotations.cancel(physical_id)

    return {"create": create, "update": update, "delete": delete}
