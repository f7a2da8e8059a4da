"""Values that one stack publishes and others read at their own next deployment.

They are SSM parameters, not exports: an export in use cannot change, so a replaced database or a
renewed CA would block every deployment. CloudFormation looks up a template parameter of type SSM at
deployment, not at synth. Functions of other apps, and tools, find all values that they need to
connect here.

Write access to a parameter decides what the next deployment reads. So two kinds of values are
published for others but not read back: those of the settings, and inside one app those of the
network, which is never replaced. docs/decisions/0039
"""

from dataclasses import dataclass
from typing import cast

from aws_cdk import Fn, Stack
from aws_cdk import aws_ssm as ssm
from constructs import Construct

from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.parameters import configured_values, description_of, parameter_name


@dataclass(frozen=True)
class Published:
    """One value of a stage."""

    name: str
    description: str
    configured: str | None = None
    """The value, if the settings of the stage's own app have it."""

    def write(self, scope: Construct, value: str) -> ssm.StringParameter:
        """Publish the value from the stack that owns it."""
        return ssm.StringParameter(
            scope,
            _id(self.name),
            parameter_name=self.name,
            string_value=value,
            description=self.description,
        )

    def write_list(self, scope: Construct, values: list[str]) -> ssm.StringListParameter:
        """Publish several values as one."""
        return ssm.StringListParameter(
            scope,
            _id(self.name),
            parameter_name=self.name,
            string_list_value=values,
            description=self.description,
        )

    def read(self, scope: Construct) -> str:
        """Return the value for a later stack; a token if the deployment looks it up."""
        here = self._written(scope)
        return here or ssm.StringParameter.value_for_string_parameter(scope, self.name)

    def read_list(self, scope: Construct) -> list[str]:
        """Return the values for a later stack; tokens if the deployment looks them up."""
        here = self._written(scope)
        if here is not None:
            return Fn.split(",", here)
        return ssm.StringListParameter.value_for_typed_list_parameter(
            scope, self.name, ssm.ParameterValueType.STRING
        )

    def _written(self, scope: Construct) -> str | None:
        """Return the settings' value, or the network's own, if this app publishes the parameter.

        Another app has other settings, whose values may differ. CDK makes exports of the network's
        values, which can be read in the same account and region only.
        """
        for stack in scope.node.root.node.children:
            parameter = stack.node.try_find_child(_id(self.name))
            if not isinstance(stack, Stack) or parameter is None:
                continue
            resource = cast(ssm.CfnParameter, parameter.node.default_child)
            if resource.name != self.name:
                continue
            if self.configured is not None:
                return self.configured
            if "/network/" in self.name and _place(stack) == _place(Stack.of(scope)):
                return resource.value
        return None


def published(config: Config, value: str) -> Published:
    """Return one of a stage's parameters."""
    return Published(
        parameter_name(config, value), description_of(value), configured_values(config).get(value)
    )


def _place(stack: Stack) -> tuple[str, str]:
    return stack.account, stack.region


def _id(name: str) -> str:
    words = "/".join(name.split("/")[3:]).replace("-", "/").split("/")
    return "".join(["Published", *(word.title() for word in words)])
