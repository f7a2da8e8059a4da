"""The places in MiniStack that the project's additions hold on to, checked before they are used.

They are not a public interface: each new version may move them. A start that fails and names the
hook is better than a deployment that silently does something else.
"""

import inspect
import sys
from importlib import import_module, metadata

VERSION = "1.5.33"
PROVISIONERS = "ministack.services.cloudformation.provisioners"
LAMBDA = "ministack.services.lambda_svc"
_CREATE = ("logical_id", "props", "stack_name")
_UPDATE = ("physical_id", "old_props", "new_props", "stack_name", "logical_id")
FUNCTIONS = {
    (PROVISIONERS, "_rds_db_instance_create"): _CREATE,
    (PROVISIONERS, "_rds_db_instance_update"): _UPDATE,
    (PROVISIONERS, "_rds_db_instance_attrs"): ("instance",),
    (PROVISIONERS, "_lambda_create"): _CREATE,
    (PROVISIONERS, "_lambda_update"): _UPDATE,
    (PROVISIONERS, "_apigw_v2_api_create"): _CREATE,
    (PROVISIONERS, "_apigw_v2_api_update"): _UPDATE,
    (PROVISIONERS, "_apigw_v2_stage_create"): _CREATE,
    (PROVISIONERS, "_apigw_v2_stage_update"): _UPDATE,
    (PROVISIONERS, "_sm_secret_create"): _CREATE,
    (PROVISIONERS, "_sm_secret_update"): _UPDATE,
    (PROVISIONERS, "_sm_secret_delete"): ("physical_id", "props"),
    (PROVISIONERS, "_pascal_to_camel"): ("obj",),
    (LAMBDA, "_execute_function_warm"): ("func", "event", "request_id"),
    (LAMBDA, "_throttle_response"): ("reason_code", "msg", "retry_after"),
}
TYPES = (
    "AWS::ApiGatewayV2::Api",
    "AWS::ApiGatewayV2::Stage",
    "AWS::Lambda::Function",
    "AWS::RDS::DBInstance",
    "AWS::SecretsManager::Secret",
)
STORES = (
    ("ministack.services.rds", "_instances"),
    ("ministack.services.secretsmanager", "_secrets"),
    (LAMBDA, "_functions"),
    ("ministack.services.apigateway", "_apis"),
    ("ministack.services.apigateway", "_stages"),
)


def check() -> None:
    """End the process with a message that names every hook that is not as it was."""
    version = metadata.version("ministack")
    if moved := [*_moved_functions(), *_moved_types(), *_moved_stores()]:
        listed = "\n".join(f"  - {name}" for name in moved)
        sys.exit(
            f"MiniStack {version} is not what the local cloud was made for ({VERSION}). "
            f"These hooks have moved:\n{listed}\n"
            "Install the pinned version, or adapt local/control_plane/ to the new one."
        )


def _moved_functions() -> list[str]:
    moved = []
    for (module, name), expected in FUNCTIONS.items():
        function = getattr(import_module(module), name, None)
        found = tuple(inspect.signature(function).parameters) if callable(function) else None
        if found != expected:
            moved.append(f"{module}.{name}{expected}: found {found}")
    return moved


def _moved_types() -> list[str]:
    table = getattr(import_module(PROVISIONERS), "_RESOURCE_HANDLERS", {})
    return [
        f"{PROVISIONERS}._RESOURCE_HANDLERS[{kind!r}]: no create and update that take a logical id"
        for kind in TYPES
        if not {"create", "update", "update_with_logical_id"} <= set(table.get(kind, {}))
    ]


def _moved_stores() -> list[str]:
    return [
        f"{module}.{name}: gone"
        for module, name in STORES
        if not hasattr(import_module(module), name)
    ]
