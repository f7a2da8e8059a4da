"""Run functions in the cloud's environments, and keep the code of each version."""

import json
from datetime import timedelta
from importlib import import_module
from typing import Any

from lambda_pg_cdk.local.control_plane import hooks
from lambda_pg_cdk.local.control_plane.cloud import Cloud
from lambda_pg_cdk.local.control_plane.handlers import (
    Handlers,
    Made,
    Properties,
    Response,
    complete,
)
from lambda_pg_cdk.local.control_plane.signatures import presign

LOCATION_LIFETIME = timedelta(minutes=10)  # of the URL of a function's code, as on AWS


def install(table: dict[str, Handlers], cloud: Cloud, key: str) -> None:
    """Complete the handlers of functions, and replace how they run."""
    complete(table["AWS::Lambda::Function"], _keep_limits)
    _presign_layers(key)
    _serve_code_of_versions(key)
    _run_functions_in(cloud)


def _keep_limits(made: Made, props: Properties) -> Made:
    """Keep reserved concurrency and the network of a function."""
    record = import_module(hooks.LAMBDA)._functions[made[0]]
    reserved = props.get("ReservedConcurrentExecutions")
    record["concurrency"] = None if reserved is None else int(reserved)
    network = props.get("VpcConfig") or {}
    record["config"]["VpcConfig"] = {
        "SubnetIds": network.get("SubnetIds", []),
        "SecurityGroupIds": network.get("SecurityGroupIds", []),
    }
    return made


def _presigned(url: str, key: str) -> str:
    """Sign a URL; MiniStack's own have a fake signature, or none."""
    region = import_module(hooks.RESPONSES).get_region()
    return presign(url.partition("?")[0], key, region, LOCATION_LIFETIME)


def _presign_layers(key: str) -> None:
    module: Any = import_module(hooks.LAMBDA)
    locate = module._layer_content_url
    module._layer_content_url = lambda layer_name, version: _presigned(
        locate(layer_name, version), key
    )


def _serve_code_of_versions(key: str) -> None:
    """Make GetFunction of a published version return its code; MiniStack returns the newest."""
    module: Any = import_module(hooks.LAMBDA)
    get, serve = module._get_function, module.serve_function_code

    def get_function(name: str, qualifier: str | None = None) -> Response:
        response: Response = get(name, qualifier)
        status, headers, body = response
        if status != 200:
            return response
        found = json.loads(body)
        version = found["Configuration"]["Version"]
        location = found["Code"].get("Location")
        if not location:
            return response
        if version != "$LATEST":
            location = location.replace(f"/{name}?", f"/{name}:{version}?")
        found["Code"]["Location"] = _presigned(location, key)
        return status, headers, json.dumps(found).encode()

    def serve_code(
        func_name: str, account_id: str | None = None, region: str | None = None
    ) -> Response:
        name, _, version = func_name.partition(":")
        function = (
            module._functions.get_scoped(account_id, region, name)
            if account_id and region
            else module._functions.get(name)
        )
        published = function["versions"].get(version) if function and version else None
        if published is None:
            whole: Response = serve(name, account_id, region)
            return whole
        return 200, {"Content-Type": "application/zip"}, published.get("code_zip") or b""

    module._get_function, module.serve_function_code = get_function, serve_code


def _run_functions_in(cloud: Cloud) -> None:
    """Run functions in the cloud's execution environments instead of MiniStack's workers.

    A migration or a custom resource then has the same runtime as a request. Only Node functions
    stay with MiniStack: the CDK uses some for its custom resources.
    """
    module: Any = import_module(hooks.LAMBDA)
    elsewhere = module._execute_function_warm

    def execute(func: dict[str, Any], event: Any, request_id: str) -> dict[str, Any]:
        config = func.get("config") or func
        if not str(config.get("Runtime", "")).startswith("python"):
            result: dict[str, Any] = elsewhere(func, event, request_id)
            return result
        version = str(config.get("Version", "$LATEST"))
        answer = cloud.invoke(config["FunctionName"], version, event)
        if answer.get("throttled"):
            reason = "ReservedFunctionConcurrentInvocationLimitExceeded"
            throttle: dict[str, Any] = module._throttle_response(reason, answer["throttled"])
            return throttle
        failed = answer["function_error"] is not None
        return (
            {"body": answer["payload"], "error": failed} if failed else {"body": answer["payload"]}
        )

    module._execute_function_warm = execute
