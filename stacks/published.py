"""Values that one stack publishes and others read at their own next deployment.

They travel as SSM parameters, not as exports: an export in use cannot change, so that a replaced
database or a renewed CA would block the deployment for good. A template parameter of type SSM is
looked up by CloudFormation, at deployment and not at synth. Functions of other apps and tools find
here all that they need to connect.

Who may write a parameter decides what the next deployment takes from it. So two kinds of values are
published for others and not read back: what the settings say, and inside one app the network, which
is never replaced. docs/decisions/0039
"""

from dataclasses import dataclass
from typing import cast

from aws_cdk import Fn, Stack
from aws_cdk import aws_ssm as ssm
from constructs import Construct

from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.parameters import PARAMETERS, parameter_name, said_by


@dataclass(frozen=True)
class Published:
    """One value of a stage."""

    name: str
    description: str
    said: str | None = None
    """The value, where the settings of the stage's own app say it."""

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
        """Give the value to a stack that is deployed later; a token at synth if it is looked up."""
        here = self._written(scope)
        return here or ssm.StringParameter.value_for_string_parameter(scope, self.name)

    def read_list(self, scope: Construct) -> list[str]:
        """Give the values to a stack that is deployed later; tokens at synth if looked up."""
        here = self._written(scope)
        if here is not None:
            return Fn.split(",", here)
        return ssm.StringListParameter.value_for_typed_list_parameter(
            scope, self.name, ssm.ParameterValueType.STRING
        )

    def _written(self, scope: Construct) -> str | None:
        """Give what the settings say, or the network's own value, where the same app publishes it.

        Another app has settings of its own, which need not say the same. Of the network's values
        CDK makes exports, which are read in their own account and region alone.
        """
        for stack in scope.node.root.node.children:
            parameter = stack.node.try_find_child(_id(self.name))
            if not isinstance(stack, Stack) or parameter is None:
                continue
            resource = cast(ssm.CfnParameter, parameter.node.default_child)
            if resource.name != self.name:
                continue
            if self.said is not None:
                return self.said
            if "/network/" in self.name and _place(stack) == _place(Stack.of(scope)):
                return resource.value
        return None


def published(config: Config, value: str) -> Published:
    """Name one of a stage's parameters."""
    description = PARAMETERS[value]
    return Published(parameter_name(config, value), description, said_by(config).get(value))


def _place(stack: Stack) -> tuple[str, str]:
    return stack.account, stack.region


def _id(name: str) -> str:
    words = "/".join(name.split("/")[3:]).replace("-", "/").split("/")
    return "".join(["Published", *(word.title() for word in words)])
