"""What MiniStack lacks for this project: types, and properties that its stacks path drops."""

import importlib
import uuid
from collections.abc import Callable
from typing import Any

from local.control_plane import hooks
from local.control_plane.cloud import Cloud

Properties = dict[str, Any]
Made = tuple[str, dict[str, Any]]  # a resource's physical id and its attributes


def _named(prefix: str, attributes: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Make handlers of a type that only has to exist, with a name and attributes."""

    def create(logical_id: str, props: Properties, stack_name: str) -> Made:  # noqa: ARG001
        physical_id = f"{prefix}-{uuid.uuid4().hex[:17]}"
        return physical_id, attributes(physical_id)

    def update(
        physical_id: str,
        old: Properties,  # noqa: ARG001
        new: Properties,  # noqa: ARG001
        stack_name: str,  # noqa: ARG001
    ) -> Made:
        return physical_id, attributes(physical_id)

    return {"create": create, "update": update, "delete": lambda _id, _props: None}


# RDS Proxy, its targets and rotations are accepted but do nothing here.
TYPES = {
    "AWS::EC2::EIP": _named("eipalloc", lambda i: {"AllocationId": i, "PublicIp": "192.0.2.1"}),
    "AWS::EC2::NatGateway": _named("nat", lambda i: {"NatGatewayId": i}),
    "AWS::EC2::FlowLog": _named("fl", lambda i: {"Id": i}),
    "AWS::EC2::SecurityGroupIngress": _named("sgr", lambda i: {"Id": i}),
    "AWS::EC2::SecurityGroupEgress": _named("sgr", lambda i: {"Id": i}),
    "AWS::EC2::VPCCidrBlock": _named("vpc-cidr-assoc", lambda i: {"Id": i}),
    "AWS::ApplicationAutoScaling::ScalableTarget": _named("target", lambda i: {"Id": i}),
    "AWS::ApplicationAutoScaling::ScalingPolicy": _named("policy", lambda i: {"Arn": i}),
    "AWS::RDS::DBProxy": _named(
        "proxy",
        lambda i: {
            "DBProxyArn": f"arn:aws:rds:us-east-1:000000000000:db-proxy:{i}",
            "Endpoint": "127.0.0.1",
        },
    ),
    "AWS::RDS::DBProxyTargetGroup": _named("target-group", lambda i: {"TargetGroupArn": i}),
    "AWS::SecretsManager::RotationSchedule": _named("rotation", lambda i: {"Id": i}),
}


def install(cloud: Cloud) -> None:
    """Add the types and wrap the handlers; the hooks have been checked."""
    provisioners = importlib.import_module(hooks.PROVISIONERS)
    table = provisioners._RESOURCE_HANDLERS
    for kind, handlers in TYPES.items():
        table.setdefault(kind, handlers)
    _complete(table["AWS::RDS::DBInstance"], _database_completion(provisioners, cloud))
    _complete(table["AWS::Lambda::Function"], _complete_function)
    _name_secrets_by_arn(table["AWS::SecretsManager::Secret"])
    camel = provisioners._pascal_to_camel
    _complete(table["AWS::ApiGatewayV2::Api"], _api_completion(camel))
    _complete(table["AWS::ApiGatewayV2::Stage"], _stage_completion(camel))
    _run_functions_in(cloud)


def _complete(handlers: dict[str, Any], complete: Callable[[Made, Properties], Made]) -> None:
    """Let `complete` add to what a type's create and update have made."""
    create, update = handlers["create"], handlers["update"]

    def completed_create(logical_id: str, props: Properties, stack_name: str) -> Made:
        return complete(create(logical_id, props, stack_name), props)

    def completed_update(
        physical_id: str,
        old: Properties,
        new: Properties,
        stack: str,
        logical_id: str | None = None,
    ) -> Made:
        return complete(update(physical_id, old, new, stack, logical_id), new)

    handlers.update(create=completed_create, update=completed_update)


def _database_completion(provisioners: Any, cloud: Cloud) -> Callable[[Made, Properties], Made]:
    """Let a DBInstance be the local PostgreSQL: its address, its master user, its database."""
    rds = importlib.import_module("ministack.services.rds")

    def complete(made: Made, props: Properties) -> Made:
        instance = rds._instances[made[0]]
        database = cloud.provide_database(
            instance["MasterUsername"], instance["_MasterUserPassword"], props.get("DBName", "")
        )
        instance["Endpoint"].update(Address=database["host"], Port=int(database["port"]))
        return made[0], provisioners._rds_db_instance_attrs(instance)

    return complete


def _name_secrets_by_arn(handlers: dict[str, Any]) -> None:
    """Let Ref of a secret be its ARN, as on AWS, where MiniStack gives its name."""
    create, update, delete = handlers["create"], handlers["update"], handlers["delete"]
    secrets = importlib.import_module("ministack.services.secretsmanager")._secrets

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


def _complete_function(made: Made, props: Properties) -> Made:
    """Keep reserved concurrency and the network of a function."""
    functions = importlib.import_module(hooks.LAMBDA)._functions
    record = functions[made[0]]
    reserved = props.get("ReservedConcurrentExecutions")
    record["concurrency"] = None if reserved is None else int(reserved)
    network = props.get("VpcConfig") or {}
    record["config"]["VpcConfig"] = {
        "SubnetIds": network.get("SubnetIds", []),
        "SecurityGroupIds": network.get("SecurityGroupIds", []),
    }
    return made


def _api_completion(camel: Callable[[Any], Any]) -> Callable[[Made, Properties], Made]:
    apis = importlib.import_module("ministack.services.apigateway")._apis

    def complete(made: Made, props: Properties) -> Made:
        if cors := props.get("CorsConfiguration"):
            apis[made[0]]["corsConfiguration"] = camel(cors)
        return made

    return complete


def _stage_completion(camel: Callable[[Any], Any]) -> Callable[[Made, Properties], Made]:
    stages = importlib.import_module("ministack.services.apigateway")._stages

    def complete(made: Made, props: Properties) -> Made:
        stage = stages.get(props.get("ApiId", ""), {}).get(made[1].get("StageName", ""))
        if stage is not None:
            stage["defaultRouteSettings"] = camel(props.get("DefaultRouteSettings", {}))
            stage["routeSettings"] = {
                key: camel(value) for key, value in props.get("RouteSettings", {}).items()
            }
        return made

    return complete


def _run_functions_in(cloud: Cloud) -> None:
    """Run functions in the cloud's execution environments instead of MiniStack's workers.

    So that a migration or a custom resource meets the same runtime as a request does. Only Node
    functions stay with MiniStack: CDK brings some of its own for triggers and custom resources.
    """
    module: Any = importlib.import_module(hooks.LAMBDA)
    elsewhere = module._execute_function_warm

    def execute(func: dict[str, Any], event: Any, request_id: str) -> dict[str, Any]:
        config = func.get("config") or func
        if not str(config.get("Runtime", "")).startswith("python"):
            result: dict[str, Any] = elsewhere(func, event, request_id)
            return result
        answer = cloud.invoke(config["FunctionName"], event)
        if answer.get("throttled"):
            reason = "ReservedFunctionConcurrentInvocationLimitExceeded"
            throttle: dict[str, Any] = module._throttle_response(reason, answer["throttled"])
            return throttle
        failed = answer["function_error"] is not None
        return (
            {"body": answer["payload"], "error": failed} if failed else {"body": answer["payload"]}
        )

    module._execute_function_warm = execute
