"""The functions and tables in MiniStack that the additions change, checked before they are used.

They are not a public interface: each new version may move them. It is better to fail at the start,
with the name of the hook, than to deploy something else silently.
"""

import inspect
import sys
from importlib import import_module, metadata

VERSION = "1.5.33"
APPLICATION = "ministack.app"
RESPONSES = "ministack.core.responses"
ROUTER = "ministack.core.router"
STACKS = "ministack.services.cloudformation"
PROVISIONERS = f"{STACKS}.provisioners"
LAMBDA = "ministack.services.lambda_svc"
SECRETS = "ministack.services.secretsmanager"
RDS = "ministack.services.rds"
ECS = "ministack.services.ecs"
STS = "ministack.services.sts"
IAM = "ministack.services.iam"
_CREATE = ("logical_id", "props", "stack_name")
_UPDATE = ("physical_id", "old_props", "new_props", "stack_name", "logical_id")
_DELETE = ("physical_id", "props")
FUNCTIONS = {
    (APPLICATION, "app"): ("scope", "receive", "send"),
    (APPLICATION, "main"): (),
    (RESPONSES, "set_request_account_id"): ("access_key_id",),
    (RESPONSES, "set_request_region"): ("region",),
    (ROUTER, "extract_access_key_id"): ("headers", "query_params"),
    (ROUTER, "extract_region"): ("headers", "query_params"),
    (STACKS, "handle_request"): ("method", "path", "headers", "body", "query_params"),
    (SECRETS, "handle_request"): ("method", "path", "headers", "body", "query_params"),
    (f"{STACKS}.handlers", "_resolve_stack"): ("stack_name",),
    (f"{STACKS}.handlers", "_create_change_set"): ("params",),
    (f"{STACKS}.changesets", "_find_change_set"): ("cs_name", "stack_name"),
    (PROVISIONERS, "_rds_db_instance_create"): _CREATE,
    (PROVISIONERS, "_rds_db_instance_update"): _UPDATE,
    (PROVISIONERS, "_rds_db_instance_delete"): _DELETE,
    (PROVISIONERS, "_rds_db_instance_attrs"): ("instance",),
    (PROVISIONERS, "_rds_db_cluster_create"): _CREATE,
    (PROVISIONERS, "_rds_db_cluster_update"): _UPDATE,
    (PROVISIONERS, "_rds_db_cluster_delete"): _DELETE,
    (PROVISIONERS, "_rds_db_cluster_attrs"): ("cluster",),
    (PROVISIONERS, "_lambda_create"): _CREATE,
    (PROVISIONERS, "_lambda_update"): _UPDATE,
    (PROVISIONERS, "_apigw_v2_api_create"): _CREATE,
    (PROVISIONERS, "_apigw_v2_api_update"): _UPDATE,
    (PROVISIONERS, "_apigw_v2_stage_create"): _CREATE,
    (PROVISIONERS, "_apigw_v2_stage_update"): _UPDATE,
    (PROVISIONERS, "_ecs_service_create"): _CREATE,
    (PROVISIONERS, "_ecs_service_update"): _UPDATE[:-1],
    (ECS, "_update_service"): ("data",),
    (ECS, "_resolve_cluster_name"): ("ref",),
    (ECS, "_resolve_service_ref"): ("ref",),
    (PROVISIONERS, "_sm_secret_create"): _CREATE,
    (PROVISIONERS, "_sm_secret_update"): _UPDATE,
    (PROVISIONERS, "_sm_secret_delete"): _DELETE,
    (PROVISIONERS, "_pascal_to_camel"): ("obj",),
    (RDS, "_generate_master_user_password"): (),
    (STS, "_gen_secret"): (),
    (IAM, "_gen_secret"): (),
    (SECRETS, "_resolve"): ("secret_id", "use_arn_scope"),
    (SECRETS, "_get_secret_value"): ("data",),
    (SECRETS, "_put_secret_value"): ("data",),
    (SECRETS, "_describe_secret"): ("data",),
    (SECRETS, "_rotate_secret"): ("data",),
    (SECRETS, "_remove_stage_everywhere"): ("secret", "stage", "except_version_id"),
    (SECRETS, "_add_stage"): ("secret", "version_id", "stage"),
    (SECRETS, "_sync_replicas"): ("secret",),
    (SECRETS, "resolve_secret_string"): ("secret_id", "version_stage", "version_id"),
    (SECRETS, "create_secret_in_process"): ("name", "secret_string", "description"),
    (SECRETS, "delete_secret_in_process"): ("secret_id",),
    (SECRETS, "json_response"): ("data", "status", "content_type"),
    (SECRETS, "error_response_json"): (
        "code",
        "message",
        "status",
        "extra",
        "message_key",
        "content_type",
    ),
    (LAMBDA, "_execute_function_warm"): ("func", "event", "request_id"),
    (LAMBDA, "_execute_function"): ("func", "event"),
    (LAMBDA, "_get_func_record_for_ref"): ("function_ref",),
    (LAMBDA, "_get_function"): ("name", "qualifier"),
    (LAMBDA, "serve_function_code"): ("func_name", "account_id", "region"),
    (LAMBDA, "_layer_content_url"): ("layer_name", "version"),
    (LAMBDA, "_throttle_response"): ("reason_code", "msg", "retry_after"),
    ("ministack.core.concurrency", "spawn_background"): ("fn", "args", "thread_name", "kwargs"),
    (RESPONSES, "get_region"): (),
    (RESPONSES, "get_account_id"): (),
}
WITH_LOGICAL_ID = (
    "AWS::ApiGatewayV2::Api",
    "AWS::ApiGatewayV2::Stage",
    "AWS::Lambda::Function",
    "AWS::RDS::DBCluster",
    "AWS::RDS::DBInstance",
    "AWS::SecretsManager::Secret",
)
WITHOUT_LOGICAL_ID = ("AWS::ECS::Service",)
STORES = (
    (STACKS, "_stacks"),
    (f"{STACKS}.handlers", "_ACTION_HANDLERS"),
    (RDS, "_instances"),
    (RDS, "_clusters"),
    (SECRETS, "_secrets"),
    (LAMBDA, "_functions"),
    (ECS, "_services"),
    (ECS, "_ACTION_MAP"),
    ("ministack.services.apigateway", "_apis"),
    ("ministack.services.apigateway", "_stages"),
)


def check() -> None:
    """End the process with a message that names every hook that has moved."""
    version = metadata.version("ministack")
    if moved := [*_moved_functions(), *_moved_types(), *_moved_stores()]:
        listed = "\n".join(f"  - {name}" for name in moved)
        sys.exit(
            f"MiniStack is version {version}; the local cloud needs {VERSION}. "
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
    moved = []
    for kind in (*WITH_LOGICAL_ID, *WITHOUT_LOGICAL_ID):
        names = {"create", "update", "delete"}
        if kind in WITH_LOGICAL_ID:
            names.add("update_with_logical_id")
        if missing := names - set(table.get(kind, {})):
            lacks = ", ".join(sorted(missing))
            moved.append(f"{PROVISIONERS}._RESOURCE_HANDLERS[{kind!r}]: without {lacks}")
    return moved


def _moved_stores() -> list[str]:
    return [
        f"{module}.{name}: missing"
        for module, name in STORES
        if not hasattr(import_module(module), name)
    ]
