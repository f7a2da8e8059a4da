"""Keep the registries of an ECS service, in which Cloud Map lists its tasks."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from lambda_pg_cdk.local.control_plane import hooks
from lambda_pg_cdk.local.control_plane.handlers import Handlers, Made, Properties, Response


def install(table: dict[str, Handlers], camel: Callable[[Any], Any]) -> None:
    """Complete the type's handlers and UpdateService."""
    module: Any = import_module(hooks.ECS)
    updating = _updating(module, module._update_service)
    module._update_service = module._ACTION_MAP["UpdateService"] = updating
    handlers = table["AWS::ECS::Service"]
    create, update = handlers["create"], handlers["update"]

    def wanted(props: Properties) -> list[dict[str, Any]]:
        return list(camel(props.get("ServiceRegistries") or []))

    def create_with_registries(logical_id: str, props: Properties, stack_name: str) -> Made:
        made: Made = create(logical_id, props, stack_name)
        cluster, name = made[0].split("/")[-2:]
        module._services[f"{cluster}/{name}"]["serviceRegistries"] = wanted(props)
        return made

    def update_with_registries(
        physical_id: str, old: Properties, new: Properties, stack_name: str
    ) -> Made:
        made: Made = update(physical_id, old, new, stack_name)
        if wanted(new) != wanted(old):
            cluster, name = made[0].split("/")[-2:]
            order = {"cluster": cluster, "service": name, "serviceRegistries": wanted(new)}
            module._update_service(order)
        return made

    handlers.update(create=create_with_registries, update=update_with_registries)


def _updating(
    module: Any, update: Callable[[dict[str, Any]], Response]
) -> Callable[[dict[str, Any]], Response]:
    """Let UpdateService change the registries, which replaces all tasks, as on AWS."""

    def update_service(data: dict[str, Any]) -> Response:
        if "serviceRegistries" not in data:
            return update(data)
        response = update({**data, "forceNewDeployment": True})
        if response[0] == 200:
            cluster = module._resolve_cluster_name(data.get("cluster", "default"))
            name, _ = module._resolve_service_ref(data.get("service", ""))
            service = module._services[f"{cluster}/{name}"]
            service["serviceRegistries"] = data["serviceRegistries"]
        return response

    return update_service
