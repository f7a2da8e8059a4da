"""Read what is deployed from the control plane, through AWS's public APIs only."""

import hashlib
import io
import json
import urllib.request
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from lambda_pg_cdk.local.control_plane.changes import OWN_REQUESTS
from lambda_pg_cdk.local.deployment.deployed import (
    FOLDER_TAG,
    Deployed,
    Function,
    PoolerService,
    PoolerTask,
)
from lambda_pg_cdk.local.deployment.http_apis import FUNCTION, HttpApis
from lambda_pg_cdk.local.state import client_keys

_CHANGING = "_IN_PROGRESS"
_POOLER_VARIABLE = "USER_SECRET_ARNS"  # only the supervisor's container has it
_STOP_SECONDS = 30.0  # ECS's default from SIGTERM to SIGKILL
_SERVICES_AT_ONCE = 10  # the limit of DescribeServices


class Inventory:
    """The deployed functions, APIs and pooler; code and layers are unpacked into a folder.

    One cloud may have several apps. It runs all their functions and APIs, but only the first
    service that is a pooler of this project.
    """

    def __init__(self, endpoint: str, region: str, key: str, folder: Path) -> None:
        self._folder = folder
        session = boto3.Session(region_name=region, **client_keys(key))
        config = Config(
            retries={"max_attempts": 2},
            connect_timeout=5,
            read_timeout=30,
            proxies={},
            user_agent_extra=OWN_REQUESTS,
        )
        names = ("lambda", "apigatewayv2", "ecs", "elbv2", "cloudformation")
        self._clients = {
            name: session.client(name, endpoint_url=endpoint, config=config) for name in names
        }
        self._apis = HttpApis(self._clients["apigatewayv2"])
        # What `signature` includes besides stacks and functions; `read` sets it.
        self._aliases: dict[str, str] = {}
        self._pooler_arn: str | None = None

    def signature(self) -> str:
        """Return a text that changes when a stack, a function, an alias or the pooler does."""
        facts: list[tuple[str, ...]] = [
            (stack["StackName"], stack["StackStatus"], str(stack.get("LastUpdatedTime")))
            for stack in self._stacks()
        ]
        facts += [
            (each["FunctionName"], each["CodeSha256"], each["RevisionId"])
            for each in self._functions()
        ]
        facts += [(name, *self._version_of(name, each)) for name, each in self._aliases.items()]
        if self._pooler_arn is not None:
            facts += [_signature_of(each) for each in self._describe([self._pooler_arn])]
        return json.dumps(sorted(facts))

    def changing(self) -> bool:
        """Tell whether a stack is being changed."""
        return any(stack["StackStatus"].endswith(_CHANGING) for stack in self._stacks())

    def stacks(self) -> dict[str, str]:
        """Return the status of each stack."""
        return {stack["StackName"]: stack["StackStatus"] for stack in self._stacks()}

    def read(self) -> Deployed:
        """Return everything that the cloud runs."""
        apis, qualifiers = self._apis.read()
        names = [
            each["FunctionName"]
            for each in self._functions()
            if each.get("Runtime", "").startswith("python")
        ]
        self._aliases = self._choose_aliases(names, qualifiers)
        functions = [self.function(name, self._aliases.get(name)) for name in names]
        return Deployed(tuple(functions), apis, self._apis.domains(apis), self._pooler())

    def _stacks(self) -> list[dict[str, Any]]:
        return self._all("cloudformation", "describe_stacks", "Stacks")

    def _functions(self) -> list[dict[str, Any]]:
        return self._all("lambda", "list_functions", "Functions")

    def _all(self, service: str, operation: str, key: str, **asked: Any) -> list[Any]:
        pages = self._clients[service].get_paginator(operation).paginate(**asked)
        return [each for page in pages for each in page.get(key, [])]

    # Functions

    def _choose_aliases(
        self, names: Iterable[str], qualifiers: Mapping[str, str]
    ) -> dict[str, str]:
        """Choose the qualifier of each function: the one that the API calls, or its first alias."""
        chosen = {}
        for name in names:
            found = self._all("lambda", "list_aliases", "Aliases", FunctionName=name)
            aliases = sorted(each["Name"] for each in found)
            if qualifier := qualifiers.get(name) or next(iter(aliases), None):
                chosen[name] = qualifier
        return chosen

    def alias(self, name: str) -> str | None:
        """Return the qualifier of a function that `read` has chosen."""
        return self._aliases.get(name)

    def _version_of(self, name: str, alias: str) -> tuple[str, ...]:
        client = self._clients["lambda"]
        try:
            return (alias, client.get_alias(FunctionName=name, Name=alias)["FunctionVersion"])
        except client.exceptions.ResourceNotFoundException:  # a version, or deleted with its stack
            return (alias,)

    def function(self, name: str, qualifier: str | None = None) -> Function:
        """Return one function, with its code and its layers unpacked.

        `qualifier` names an alias or a version; without one it is the newest code, `$LATEST`.
        Raises LookupError.
        """
        asked = {"FunctionName": name} | ({"Qualifier": qualifier} if qualifier else {})
        client = self._clients["lambda"]
        try:
            found = client.get_function(**asked)
        except client.exceptions.ResourceNotFoundException:
            version = f" in version {qualifier}" if qualifier else ""
            raise LookupError(f"no function {name!r} is deployed{version}") from None
        configuration = found["Configuration"]
        code = self._unpacked(configuration["CodeSha256"], found["Code"]["Location"])
        layers = [self._layer(layer["Arn"]) for layer in configuration.get("Layers", [])]
        variables = configuration.get("Environment", {}).get("Variables", {})
        logging = configuration.get("LoggingConfig", {})
        formats = {"AWS_LAMBDA_LOG_FORMAT": logging.get("LogFormat", "Text")}
        if level := logging.get("ApplicationLogLevel"):
            formats["AWS_LAMBDA_LOG_LEVEL"] = level
        return Function(
            name=name,
            folder=found.get("Tags", {}).get(FOLDER_TAG, name),
            arn=_qualified(configuration["FunctionArn"], qualifier),
            handler=configuration["Handler"],
            runtime=configuration["Runtime"],
            timeout=float(configuration["Timeout"]),
            memory=int(configuration["MemorySize"]),
            code=code,
            layers=tuple(layers),
            variables={**variables, **formats},
            log_group=logging.get("LogGroup", f"/aws/lambda/{name}"),
            reserved_concurrency=found.get("Concurrency", {}).get("ReservedConcurrentExecutions"),
            version=configuration["Version"],
        )

    def _layer(self, arn: str) -> Path:
        known = self._folder / "layers" / hashlib.sha256(arn.encode()).hexdigest()[:20]
        if known.exists():
            return known.resolve()
        known.unlink(missing_ok=True)  # what it led to has been removed
        content = self._clients["lambda"].get_layer_version_by_arn(Arn=arn)["Content"]
        unpacked = self._unpacked(content["CodeSha256"], content["Location"])
        known.parent.mkdir(parents=True, exist_ok=True)
        known.symlink_to(unpacked)
        return unpacked

    def _unpacked(self, digest: str, location: str) -> Path:
        folder = self._folder / hashlib.sha256(digest.encode()).hexdigest()[:20]
        if folder.exists():
            return folder
        archive = zipfile.ZipFile(io.BytesIO(download(location)))
        partial = folder.with_suffix(".partial")
        archive.extractall(partial)  # zipfile refuses paths out of the folder
        partial.rename(folder)
        return folder

    # Pooler

    def _pooler(self) -> PoolerService | None:
        self._pooler_arn = None
        for service in sorted(self._services(), key=lambda each: str(each.get("createdAt", ""))):
            if (task := self._pooler_task(service["taskDefinition"])) is not None:
                self._pooler_arn = service["serviceArn"]
                return _pooler_service(service, task, self._deregistration_delay(service))
        return None

    def _services(self) -> Iterator[dict[str, Any]]:
        for cluster in self._all("ecs", "list_clusters", "clusterArns"):
            listed = self._all("ecs", "list_services", "serviceArns", cluster=cluster)
            for first in range(0, len(listed), _SERVICES_AT_ONCE):
                arns = [str(arn) for arn in listed[first : first + _SERVICES_AT_ONCE]]
                yield from self._describe(arns, str(cluster))

    def _describe(self, arns: list[str], cluster: str = "") -> list[dict[str, Any]]:
        """Describe the active services of one cluster."""
        cluster, client = cluster or arns[0].split("/")[-2], self._clients["ecs"]
        try:
            found = client.describe_services(cluster=cluster, services=arns)
        except client.exceptions.ClusterNotFoundException:
            return []
        return [each for each in found["services"] if each["status"] == "ACTIVE"]

    def _pooler_task(self, task_definition: str) -> PoolerTask | None:
        found = self._clients["ecs"].describe_task_definition(taskDefinition=task_definition)
        for container in found["taskDefinition"]["containerDefinitions"]:
            variables = {each["name"]: each["value"] for each in container.get("environment", [])}
            if _POOLER_VARIABLE in variables:
                stop = float(container.get("stopTimeout") or _STOP_SECONDS)
                return PoolerTask(task_definition, variables, stop)
        return None

    def _deregistration_delay(self, service: Mapping[str, Any]) -> float:
        """Return the longest delay of the target groups that the service is registered in."""
        delays = [0.0]
        for each in service.get("loadBalancers", []):
            found = self._clients["elbv2"].describe_target_group_attributes(
                TargetGroupArn=each["targetGroupArn"]
            )
            attributes = {each["Key"]: each["Value"] for each in found["Attributes"]}
            delays.append(float(attributes.get("deregistration_delay.timeout_seconds", 300)))
        return max(delays)


def download(location: str) -> bytes:
    """Return the zip file of a function's code or a layer."""
    # Without a proxy from the shell's environment: the address is on loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(location, timeout=30) as response:
        content: bytes = response.read()
    return content


def _signature_of(service: Mapping[str, Any]) -> tuple[str, ...]:
    wanted = (service["serviceArn"], service["taskDefinition"], str(service["desiredCount"]))
    return (*wanted, _deployment(service), json.dumps(service.get("deploymentConfiguration", {})))


def _deployment(service: Mapping[str, Any]) -> str:
    """Return the id of the current deployment."""
    primary = [each["id"] for each in service["deployments"] if each["status"] == "PRIMARY"]
    return str(primary[0]) if primary else str(service["taskDefinition"])


def _pooler_service(service: Mapping[str, Any], task: PoolerTask, delay: float) -> PoolerService:
    rolling = service.get("deploymentConfiguration", {})
    registries = service.get("serviceRegistries", [])
    return PoolerService(
        arn=service["serviceArn"],
        deployment=_deployment(service),
        task=task,
        desired=int(service["desiredCount"]),
        minimum_percent=int(rolling.get("minimumHealthyPercent", 100)),
        maximum_percent=int(rolling.get("maximumPercent", 200)),
        deregistration_delay=delay,
        registries=tuple(each["registryArn"].rpartition("/")[2] for each in registries),
    )


def _qualified(arn: str, qualifier: str | None) -> str:
    """Return the ARN to call a function by: with the alias, not its version."""
    found = FUNCTION.search(arn)
    if found is None or qualifier is None:
        return arn
    return f"{arn[: found.end(1)]}:{qualifier}"
