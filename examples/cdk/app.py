"""Another app, whose functions connect through a deployed lambda-pg.

Two functions, two ways. `one_call` uses lambda_pg_cdk (by PYTHONPATH here): its call also compares
the connections with those that the stage keeps for other apps. `by_parameters` needs only the names
of the parameters, and does itself what the call would do.

    PYTHONPATH=/path/to/lambda-pg cdk deploy -c stage=dev
"""

from pathlib import Path
from typing import Any

from aws_cdk import App, Duration, Stack, Token
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_ssm as ssm

import lambda_pg_cdk

CONCURRENCY = 5
EXAMPLES = Path(__file__).resolve().parents[1]


class Orders(Stack):
    """Two functions that read a user."""

    def __init__(self, app: App, name: str) -> None:
        super().__init__(app, name)
        self.stage = app.node.get_context("stage")
        self.deployed = lambda_pg_cdk.DeployedStage(app, self.stage)
        self.one_call()
        self.by_parameters()

    def new_function(self, name: str, **options: Any) -> lambda_.Function:
        """Make a function for the runtime that the stage's layer is built for."""
        runtime = self.node.try_get_context("runtime") or "python3.13"
        x86 = self.node.try_get_context("architecture") == "x86_64"
        return lambda_.Function(
            self,
            name,
            runtime=lambda_.Runtime(runtime, lambda_.RuntimeFamily.PYTHON),
            architecture=lambda_.Architecture.X86_64 if x86 else lambda_.Architecture.ARM_64,
            code=lambda_.Code.from_asset(str(EXAMPLES), exclude=["*", "!handler.py"]),
            handler="handler.handler",
            timeout=Duration.seconds(20),
            **options,
        )

    def one_call(self) -> None:
        """Attach a function by the call."""
        self.deployed.attach(self.new_function("OneCall"), concurrency=CONCURRENCY)

    def by_parameters(self) -> None:
        """Attach a function by hand."""
        vpc = ec2.Vpc.from_vpc_attributes(
            self, "Vpc", vpc_id=self.read("network/vpc"), availability_zones=["-"]
        )
        group = ec2.SecurityGroup(self, "Group", vpc=vpc, description="Orders by parameters")
        function = self.new_function(
            "ByParameters",
            reserved_concurrent_executions=CONCURRENCY,
            environment={
                "PGHOST": self.read("pooler/host"),
                "PGPORT": self.read("pooler/port"),
                "PGDATABASE": self.read("database/name"),
                "PGSSLMODE": "verify-full",
                "PGAPPNAME": "orders",
                "LAMBDA_PG_PROFILE": self.read("pooler/profile"),
                "LAMBDA_PG_STRICT": "1",
                "LAMBDA_PG_SECRET_ARN": self.read("pooler/secret-arn"),
                "LAMBDA_PG_CA_PEM": self.read("pooler/ca"),
            },
        )
        self.place(function, group)
        function.add_to_role_policy(
            iam.PolicyStatement(
                actions=["secretsmanager:GetSecretValue"],
                resources=[self.read("pooler/secret-arn")],
            )
        )

    def place(self, function: lambda_.Function, group: ec2.SecurityGroup) -> None:
        """Give it the layer, the subnets and the way to the pooler."""
        resource = function.node.default_child
        assert isinstance(resource, lambda_.CfnFunction)  # noqa: S101 - what a Function is made of
        resource.layers = [self.read("layer/arn")]
        resource.vpc_config = lambda_.CfnFunction.VpcConfigProperty(
            subnet_ids=ssm.StringListParameter.value_for_typed_list_parameter(
                self, self.name("network/subnets"), ssm.ParameterValueType.STRING
            ),
            security_group_ids=[group.security_group_id],
        )
        ec2.CfnSecurityGroupIngress(
            self,
            "IntoPooler",
            group_id=self.read("pooler/security-group"),
            source_security_group_id=group.security_group_id,
            ip_protocol="tcp",
            from_port=Token.as_number(self.read("pooler/port")),
            to_port=Token.as_number(self.read("pooler/port")),
        )
        policy = "service-role/AWSLambdaVPCAccessExecutionRole"
        assert function.role is not None  # noqa: S101 - it was made for this function
        function.role.add_managed_policy(iam.ManagedPolicy.from_aws_managed_policy_name(policy))

    def name(self, value: str) -> str:
        """Name a published value."""
        return f"/lambda-pg/{self.stage}/{value}"

    def read(self, value: str) -> str:
        """Read a published value at deployment."""
        return ssm.StringParameter.value_for_string_parameter(self, self.name(value))


if __name__ == "__main__":
    Orders(App(), "Orders").deployed.synth()
