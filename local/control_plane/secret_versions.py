"""Versions and stages of secrets as in Secrets Manager, where MiniStack differs."""

import json
import uuid
from functools import lru_cache
from importlib import import_module
from typing import Any

from lambda_pg_cdk.local.control_plane import hooks
from lambda_pg_cdk.local.control_plane.handlers import Handlers, Made, Properties, Response


def install(table: dict[str, Handlers]) -> None:
    """Make Ref of a secret its ARN, and correct how values are read and written."""
    module: Any = import_module(hooks.SECRETS)
    _name_secrets_by_arn(table["AWS::SecretsManager::Secret"], module._secrets)
    versions = _Versions(module)
    module._get_secret_value = versions.get
    module._put_secret_value = versions.put


class _Versions:
    """GetSecretValue and PutSecretValue, on top of MiniStack's."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._get, self._put = module._get_secret_value, module._put_secret_value

    def get(self, data: dict[str, Any]) -> Response:
        """Refuse a stage that the version does not have, and a version that has no value yet."""
        version, stage = data.get("VersionId"), data.get("VersionStage")
        if version and stage and self._lacks(data.get("SecretId"), version, stage):
            reason = "You provided a VersionStage that is not associated to the provided VersionId."
            return self._refuse("InvalidRequestException", reason)
        response: Response = self._get(data)
        if response[0] == 200 and not _tells_value(response[2]):
            asked = f"VersionId: {version}" if version else f"staging label: {stage}"
            reason = f"Secrets Manager can't find the specified secret value for {asked}"
            return self._refuse("ResourceNotFoundException", reason)
        return response

    def _lacks(self, secret_id: str | None, version: str, stage: str) -> bool:
        _, secret = self._module._resolve(secret_id)
        known = (secret or {}).get("Versions", {}).get(version)
        return bool(known) and stage not in known["Stages"]

    def put(self, data: dict[str, Any]) -> Response:
        """Write a version once, and move its labels to it: each is on one version only."""
        token = data.setdefault("ClientRequestToken", str(uuid.uuid4()))
        key, secret = self._module._resolve(data.get("SecretId"))
        known = (secret or {}).get("Versions", {}).get(token)
        if known and _has_value(known):
            return self._again(secret, token, data)
        response: Response = self._put(data)
        if response[0] != 200:
            return response
        secret = self._module._secrets[key]
        stages = data.get("VersionStages") or ["AWSCURRENT"]
        for stage in stages:
            self._module._remove_stage_everywhere(secret, stage, except_version_id=token)
            self._module._add_stage(secret, token, stage)
        self._module._sync_replicas(secret)
        return self._answer(secret, token)

    def _again(self, secret: dict[str, Any], token: str, data: dict[str, Any]) -> Response:
        """Answer a repeated request like the first; refuse another value with the same token."""
        known = secret["Versions"][token]
        if all(known.get(name) == data.get(name) for name in ("SecretString", "SecretBinary")):
            return self._answer(secret, token)
        reason = (
            f"You can't use ClientRequestToken {token} because that value is already in use for "
            f"a version of secret {secret['ARN']}."
        )
        return self._refuse("ResourceExistsException", reason)

    def _answer(self, secret: dict[str, Any], token: str) -> Response:
        answer = {"ARN": secret["ARN"], "Name": secret["Name"], "VersionId": token}
        stages = list(secret["Versions"][token]["Stages"])
        response: Response = self._module.json_response({**answer, "VersionStages": stages})
        return response

    def _refuse(self, kind: str, reason: str) -> Response:
        response: Response = self._module.error_response_json(kind, reason, 400)
        return response


def _has_value(version: dict[str, Any]) -> bool:
    return any(version.get(name) is not None for name in ("SecretString", "SecretBinary"))


@lru_cache(maxsize=64)
def _tells_value(answer: bytes) -> bool:
    """Tell whether an answer has a value; cached for the equal answers of a storm."""
    return _has_value(json.loads(answer))


def _name_secrets_by_arn(handlers: Handlers, secrets: Any) -> None:
    """Make Ref of a secret its ARN, as on AWS; in MiniStack it is the name."""
    create, update, delete = handlers["create"], handlers["update"], handlers["delete"]

    def name_of(arn: str) -> str:
        return next((name for name, each in secrets.items() if each["ARN"] == arn), arn)

    def by_arn(made: Made) -> Made:
        return str(secrets[made[0]]["ARN"]), made[1]

    def create_by_arn(logical_id: str, props: Properties, stack_name: str) -> Made:
        return by_arn(create(logical_id, props, stack_name))

    def update_by_arn(
        arn: str, old: Properties, new: Properties, stack: str, logical_id: str | None = None
    ) -> Made:
        return by_arn(update(name_of(arn), old, new, stack, logical_id))

    def delete_by_arn(arn: str, props: Properties) -> None:
        delete(name_of(arn), props)

    handlers.update(create=create_by_arn, update=update_by_arn, delete=delete_by_arn)
