"""Register tasks in Cloud Map, as ECS does for a service with `serviceRegistries`."""

import sys
from typing import Any

import boto3

from lambda_pg_cdk.local.deployment.deployed import PoolerService
from lambda_pg_cdk.local.state import client_keys


class CloudMap:
    """Cloud Map of the control plane. An error is logged and never stops a task."""

    def __init__(self, endpoint: str, region: str, key: str) -> None:
        """Take the control plane's endpoint and the cloud's key; nothing is sent yet."""
        self._region = region
        self._client: Any = boto3.client(
            "servicediscovery", endpoint_url=endpoint, region_name=region, **client_keys(key)
        )

    def register(self, service: PoolerService, task: str, address: str) -> None:
        """Register a task in each registry of its service."""
        attributes = {
            "AWS_INSTANCE_IPV4": address,
            "ECS_CLUSTER_NAME": service.cluster,
            "ECS_SERVICE_NAME": service.name,
            "ECS_TASK_DEFINITION_FAMILY": service.task.family,
            "REGION": self._region,
        }
        for registry in service.registries:
            self._do("register_instance", registry, task, Attributes=attributes)

    def deregister(self, service: PoolerService, task: str) -> None:
        """Deregister a task."""
        for registry in service.registries:
            self._do("deregister_instance", registry, task)

    def _do(self, operation: str, registry: str, task: str, **more: Any) -> None:
        try:
            getattr(self._client, operation)(ServiceId=registry, InstanceId=task, **more)
        except Exception as error:  # noqa: BLE001 - no error may stop the task
            print(f"Cloud Map: {operation} of task {task}: {error!r}", file=sys.stderr, flush=True)
