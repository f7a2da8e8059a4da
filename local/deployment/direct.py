"""Publish new code beside the stacks, and make the stacks right again before a deployment.

As `cdk watch` does by hotswap: UpdateFunctionCode, PublishVersion, UpdateAlias. docs/decisions/0046
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import boto3
from botocore.config import Config

from lambda_pg_cdk.local.deployment.inventory import download
from lambda_pg_cdk.local.state import client_keys


class Direct:
    """New versions of functions, which no stack knows; blocking calls.

    A function is ahead while its alias points to such a version. Its stack still has the version
    of the last deployment.
    """

    def __init__(self, endpoint: str, region: str, key: str, layer_parameter: str) -> None:
        """Take the control plane, and the SSM parameter with the ARN of the stage's layer."""
        session = boto3.Session(region_name=region, **client_keys(key))
        config = Config(connect_timeout=5, read_timeout=60, proxies={}, retries={"max_attempts": 2})
        self._lambda: Any = session.client("lambda", endpoint_url=endpoint, config=config)
        self._stacks: Any = session.client("cloudformation", endpoint_url=endpoint, config=config)
        self._parameters: Any = session.client("ssm", endpoint_url=endpoint, config=config)
        self._layer_parameter = layer_parameter
        self._own: dict[str, set[str]] = defaultdict(set)
        """The versions of each function that were published here and not removed yet."""
        self._ahead: dict[str, str] = {}
        """Functions that are ahead, and their alias."""
        self._layers: list[str] = []
        """The layers that were published here and not removed yet."""

    def owns(self, function: str, version: str) -> bool:
        """Tell whether a version was published here."""
        return version in self._own[function]

    def publish_code(self, function: str, archive: bytes) -> str:
        """Give a function new code; return the number of its version."""
        self._lambda.update_function_code(FunctionName=function, ZipFile=archive)
        return self._publish(function)

    def publish_layer(self, archive: bytes) -> str:
        """Publish a version of the stage's layer; return its ARN."""
        found = self._parameters.get_parameter(Name=self._layer_parameter)
        deployed = str(found["Parameter"]["Value"])
        made = self._lambda.publish_layer_version(
            LayerName=_unversioned(deployed).rpartition(":")[2], Content={"ZipFile": archive}
        )
        self._layers.append(str(made["LayerVersionArn"]))
        return self._layers[-1]

    def discard_layers(self) -> None:
        """Remove the layers that were published here, except the newest."""
        while len(self._layers) > 1:
            layer, _, version = self._layers.pop(0).rpartition(":")
            self._lambda.delete_layer_version(
                LayerName=layer.rpartition(":")[2], VersionNumber=int(version)
            )

    def take_layer(self, function: str, layer: str) -> str | None:
        """Give a function a version of a layer; return its own version.

        None if the function has no version of that layer.
        """
        found = self._lambda.get_function_configuration(FunctionName=function)
        before = [each["Arn"] for each in found.get("Layers", [])]
        after = [layer if _unversioned(each) == _unversioned(layer) else each for each in before]
        if after == before:
            return None
        self._lambda.update_function_configuration(FunctionName=function, Layers=after)
        return self._publish(function)

    def _publish(self, function: str) -> str:
        version = str(self._lambda.publish_version(FunctionName=function)["Version"])
        self._own[function].add(version)
        return version

    def move(self, function: str, alias: str, version: str) -> None:
        """Let an alias point to a version; remove the one before, unless it is a stack's."""
        before = self._lambda.get_alias(FunctionName=function, Name=alias)["FunctionVersion"]
        self._lambda.update_alias(FunctionName=function, Name=alias, FunctionVersion=version)
        self._ahead[function] = alias
        if before != version:
            self._discard(function, before)

    def take_back(self, function: str, alias: str, version: str) -> None:
        """Remove a version that does not start; the newest code is that of the alias again."""
        self._reset(function, alias)
        self._discard(function, version)

    def _discard(self, function: str, version: str) -> None:
        if self.owns(function, version):
            self._own[function].remove(version)
            self._lambda.delete_function(FunctionName=function, Qualifier=version)

    def restore(self) -> None:
        """Give functions that are ahead the code and the layers that their stacks know.

        Otherwise a deployment that changes only a setting would publish the newer code with it.
        Requests still run the version that the alias points to.
        """
        of_stacks = self._of_stacks()
        for function in self._ahead.keys() & of_stacks.keys():
            self._reset(function, of_stacks[function])

    def resume(self) -> None:
        """Undo `restore` after a deployment that failed: the newest code is what requests run."""
        for function, alias in self._ahead.items():
            self._reset(function, alias)

    def follow_stacks(self) -> None:
        """Let the alias of each function that is ahead point to the version of its stack.

        After a deployment that version has the code of the project's files. A stack that has not
        changed leaves the alias alone: the files are again what they were.
        """
        of_stacks = self._of_stacks()
        for function in self._ahead.keys() & of_stacks.keys():
            self.move(function, self._ahead[function], of_stacks[function])
        self._ahead.clear()

    def _reset(self, function: str, qualifier: str) -> None:
        """Make code and layers of `$LATEST` those of a version, or of an alias's version."""
        found = self._lambda.get_function(FunctionName=function, Qualifier=qualifier)
        archive = download(found["Code"]["Location"])
        layers = [each["Arn"] for each in found["Configuration"].get("Layers", [])]
        self._lambda.update_function_code(FunctionName=function, ZipFile=archive)
        self._lambda.update_function_configuration(FunctionName=function, Layers=layers)

    def _of_stacks(self) -> dict[str, str]:
        """Return the version of each function that its stack has published."""
        return dict(self._versions())

    def _versions(self) -> Iterator[tuple[str, str]]:
        for page in self._stacks.get_paginator("describe_stacks").paginate():
            for stack in page["Stacks"]:
                described = self._stacks.describe_stack_resources(StackName=stack["StackName"])
                for resource in described["StackResources"]:
                    if resource["ResourceType"] == "AWS::Lambda::Version":
                        function, _, version = resource["PhysicalResourceId"].rpartition(":")
                        yield function.rpartition(":")[2], version


def _unversioned(layer: str) -> str:
    """Return the ARN of a layer without its version."""
    return layer.rpartition(":")[0]
