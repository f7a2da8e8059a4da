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

from stacks.config import Config

FOR_CLIENTS = {
    "layer/arn": "newest version of the layer lambda_pg",
    "pooler/host": "name of the pooler, as its certificate has it",
    "pooler/port": "port of the pooler",
    "pooler/profile": "what the pooler is, for LAMBDA_PG_PROFILE",
    "pooler/ca": "CA of PgBouncer's certificate, PEM; two during a renewal",
    "pooler/security-group": "group that lets clients in on the pooler's port",
    "pooler/secret-arn": "secret that functions log in with",
    "pooler/key-arn": "customer's key that the secret is encrypted with",
    "pooler/user": "user that functions log in as with a token of their role",
    "pooler/connect-arn": "what rds-db:connect has to allow for that user",
    "database/name": "name of the database",
    "network/vpc": "VPC of pooler and functions",
    "network/subnets": "private subnets for functions",
}
"""What functions of any app need; which of them there are depends on the stage's pooler."""

VALUES = {
    **FOR_CLIENTS,
    "database/host": "direct address of the database",
    "database/port": "port of the database",
    "database/owner-secret-arn": "secret of the database's owner, for migrations and rotation",
    "database/security-group": "group that lets clients in on the database's port",
    "database/application-secret-arn": "secret of the application's user",
    "database/rotation-function": "function that rotates it",
    "database/identifier": "name of the DB instance or cluster",
    "database/resource-id": "what IAM policies call it",
    "pooler/cluster": "ECS cluster of PgBouncer, for its metrics",
    "pooler/service": "ECS service of PgBouncer",
    "pooler/load-balancer": "its load balancer, as metrics name it",
    "pooler/target-group": "its target group, as metrics name it",
    "pooler/certificate-function": "function that renews its certificate",
    "pooler/proxy": "name of the RDS Proxy",
    "network/bastion": "instance through which Session Manager reaches the database",
    "network/endpoints": "group of the interface endpoints, where there is no NAT",
}
"""Everything that a stage may publish."""


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
    """Name one of `VALUES` of a stage."""
    name = f"/{config.app}/{config.stage}/{value}"
    return Published(name, VALUES[value], _said(config).get(value))


def _said(config: Config) -> dict[str, str]:
    """Give the values that the settings say themselves."""
    existing, said = config.database.existing, {"database/name": config.database.name}
    if config.pooler == "external":
        said["pooler/secret-arn"] = str(config.external.secret_arn)
    else:
        said["pooler/port"] = str(config.pooler_port)
    if config.pooler == "pgbouncer":
        said["pooler/host"] = config.pooler_name
    if config.database.kind == "existing":
        said |= {
            "database/host": str(existing.host),
            "database/port": str(existing.port),
            "database/owner-secret-arn": str(existing.secret_arn),
            "database/security-group": str(existing.security_group_id),
        }
    return said


def _place(stack: Stack) -> tuple[str, str]:
    return stack.account, stack.region


def _id(name: str) -> str:
    words = "/".join(name.split("/")[3:]).replace("-", "/").split("/")
    return "".join(["Published", *(word.title() for word in words)])
