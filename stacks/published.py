"""Values that one stack publishes and another reads at its own next deployment.

They travel as SSM parameters with fixed names, never as exports: an export in use cannot change,
so that a replaced database or a renewed CA would block the deployment for good. A template
parameter of type SSM is looked up by CloudFormation, at deployment and not at synth.
"""

from dataclasses import dataclass

from aws_cdk import aws_ssm as ssm
from constructs import Construct


@dataclass(frozen=True)
class Published:
    """One value of a stage."""

    name: str
    description: str

    def write(self, scope: Construct, value: str) -> ssm.StringParameter:
        """Publish the value from the stack that owns it."""
        return ssm.StringParameter(
            scope,
            _id(self.name),
            parameter_name=self.name,
            string_value=value,
            description=self.description,
        )

    def read(self, scope: Construct) -> str:
        """Give the value to a stack that is deployed later; a token at synth."""
        return ssm.StringParameter.value_for_string_parameter(scope, self.name)


def database_host(stage: str) -> Published:
    """Name the database's own endpoint: its certificate carries no other name."""
    return Published(f"/lambda-pg/{stage}/database/host", "direct address of the database")


def database_port(stage: str) -> Published:
    """Name the database's port."""
    return Published(f"/lambda-pg/{stage}/database/port", "port of the database")


def pooler_ca(stage: str) -> Published:
    """Name the certificate, or two during a renewal, that the pooler's chain ends in."""
    return Published(f"/lambda-pg/{stage}/pooler/ca", "CA of the pooler's certificate, PEM")


def _id(name: str) -> str:
    return "".join(part.title() for part in name.split("/")[3:])
