"""Read what is deployed from the control plane, through AWS's public APIs only."""

import hashlib
import io
import json
import re
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from local.deployed import (
    FOLDER_TAG,
    Api,
    Cors,
    Deployed,
    Function,
    JwtAuthorizer,
    PoolerTask,
    Route,
    Throttle,
)
from local.state import CREDENTIALS

_CHANGING = "_IN_PROGRESS"


class Inventory:
    """The deployed functions, API and pooler task; code and layers are unpacked into a folder."""

    def __init__(self, endpoint: str, region: str, folder: Path) -> None:
        self._folder = folder
        keys = {name.lower(): value for name, value in CREDENTIALS.items()}
        session = boto3.Session(region_name=region, **keys)
        config = Config(retries={"max_attempts": 2}, connect_timeout=5, read_timeout=30, proxies={})
        names = ("lambda", "apigatewayv2", "ecs", "cloudformation")
        self._clients = {
            name: session.client(name, endpoint_url=endpoint, config=config) for name in names
        }

    def signature(self) -> str:
        """Return a text that changes when a stack or a function does."""
        stacks = self._clients["cloudformation"].describe_stacks()["Stacks"]
        told = [
            (stack["StackName"], stack["StackStatus"], str(stack.get("LastUpdatedTime")))
            for stack in stacks
        ]
        functions = self._clients["lambda"].list_functions()["Functions"]
        told += [
            (each["FunctionName"], each["CodeSha256"], each["RevisionId"]) for each in functions
        ]
        return json.dumps(sorted(told))

    def changing(self) -> bool:
        """Tell whether a stack is in the middle of a change."""
        stacks = self._clients["cloudformation"].describe_stacks()["Stacks"]
        return any(stack["StackStatus"].endswith(_CHANGING) for stack in stacks)

    def stacks(self) -> dict[str, str]:
        """Return the status of each stack."""
        stacks = self._clients["cloudformation"].describe_stacks()["Stacks"]
        return {stack["StackName"]: stack["StackStatus"] for stack in stacks}

    def read(self) -> Deployed:
        """Return everything that the cloud runs."""
        listed = self._clients["lambda"].list_functions()["Functions"]
        names = [each["FunctionName"] for each in listed if each["Runtime"].startswith("python")]
        return Deployed(tuple(map(self.function, names)), self._api(), self._pooler())

    # Functions

    def function(self, name: str) -> Function:
        """Return one function, with its code and its layers unpacked."""
        found = self._clients["lambda"].get_function(FunctionName=name)
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
            arn=configuration["FunctionArn"],
            handler=configuration["Handler"],
            runtime=configuration["Runtime"],
            timeout=float(configuration["Timeout"]),
            memory=int(configuration["MemorySize"]),
            code=code,
            layers=tuple(layers),
            variables={**variables, **formats},
            log_group=logging.get("LogGroup", f"/aws/lambda/{name}"),
            reserved_concurrency=found.get("Concurrency", {}).get("ReservedConcurrentExecutions"),
        )

    def _layer(self, arn: str) -> Path:
        known = self._folder / "layers" / hashlib.sha256(arn.encode()).hexdigest()[:20]
        if known.is_symlink():
            return known.resolve()
        content = self._clients["lambda"].get_layer_version_by_arn(Arn=arn)["Content"]
        unpacked = self._unpacked(content["CodeSha256"], content["Location"])
        known.parent.mkdir(parents=True, exist_ok=True)
        known.symlink_to(unpacked)
        return unpacked

    def _unpacked(self, digest: str, location: str) -> Path:
        folder = self._folder / hashlib.sha256(digest.encode()).hexdigest()[:20]
        if folder.exists():
            return folder
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(location, timeout=30) as response:
            archive = zipfile.ZipFile(io.BytesIO(response.read()))
        partial = folder.with_suffix(".partial")
        archive.extractall(partial)  # zipfile refuses paths that lead out
        partial.rename(folder)
        return folder

    # API

    def _api(self) -> Api | None:
        client = self._clients["apigatewayv2"]
        apis = [api for api in client.get_apis()["Items"] if api["ProtocolType"] == "HTTP"]
        if not apis:
            return None
        api_id = apis[0]["ApiId"]
        stages = client.get_stages(ApiId=api_id)["Items"]
        if not stages:
            return None
        integrations = {
            each["IntegrationId"]: each for each in client.get_integrations(ApiId=api_id)["Items"]
        }
        authorizers = {
            each["AuthorizerId"]: _authorizer(each)
            for each in client.get_authorizers(ApiId=api_id)["Items"]
        }
        routes = [
            _route(each, integrations, authorizers, stages[0])
            for each in client.get_routes(ApiId=api_id)["Items"]
        ]
        cors = apis[0].get("CorsConfiguration")
        return Api(api_id, stages[0]["StageName"], tuple(routes), _cors(cors) if cors else None)

    # Pooler

    def _pooler(self) -> PoolerTask | None:
        for definition in self._task_definitions():
            for container in definition["containerDefinitions"]:
                variables = {each["name"]: each["value"] for each in container["environment"]}
                if "USER_SECRET_ARNS" in variables:
                    return PoolerTask(definition["taskDefinitionArn"], variables)
        return None

    def _task_definitions(self) -> Iterator[Mapping[str, Any]]:
        client = self._clients["ecs"]
        for cluster in client.list_clusters()["clusterArns"]:
            services = client.list_services(cluster=cluster)["serviceArns"]
            if not services:
                continue
            for service in client.describe_services(cluster=cluster, services=services)["services"]:
                found = client.describe_task_definition(taskDefinition=service["taskDefinition"])
                yield found["taskDefinition"]


def function_name(uri: str) -> str:
    """Return the function's name from its ARN, or from the URI of an integration."""
    found = re.search(r":function:([A-Za-z0-9_-]+)", uri)
    return found[1] if found else uri


def _authorizer(found: Mapping[str, Any]) -> JwtAuthorizer:
    settings = found["JwtConfiguration"]
    return JwtAuthorizer(settings["Issuer"], tuple(settings["Audience"]))


def _route(
    found: Mapping[str, Any],
    integrations: Mapping[str, Mapping[str, Any]],
    authorizers: Mapping[str, JwtAuthorizer],
    stage: Mapping[str, Any],
) -> Route:
    integration = integrations[found["Target"].removeprefix("integrations/")]
    guarded = found.get("AuthorizationType") == "JWT"
    limits = {
        **stage.get("DefaultRouteSettings", {}),
        **stage.get("RouteSettings", {}).get(found["RouteKey"], {}),
    }
    return Route(
        key=found["RouteKey"],
        function=function_name(integration["IntegrationUri"]),
        payload_format=integration.get("PayloadFormatVersion", "2.0"),
        timeout=integration.get("TimeoutInMillis", 30_000) / 1000,
        authorizer=authorizers[found["AuthorizerId"]] if guarded else None,
        scopes=tuple(found.get("AuthorizationScopes") or ()),
        throttle=Throttle(
            float(limits.get("ThrottlingRateLimit", 0)), int(limits.get("ThrottlingBurstLimit", 0))
        ),
    )


def _cors(found: Mapping[str, Any]) -> Cors:
    return Cors(
        origins=tuple(found.get("AllowOrigins", ())),
        methods=tuple(found.get("AllowMethods", ())),
        headers=tuple(found.get("AllowHeaders", ())),
        exposed=tuple(found.get("ExposeHeaders", ())),
        max_age=found.get("MaxAge"),
        credentials=bool(found.get("AllowCredentials", False)),
    )
