"""What the other stacks may know of a pooler."""

from typing import Protocol

from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_lambda as lambda_


class Pooler(Protocol):
    """Where functions connect instead of the database."""

    host: str
    """Name or address that the pooler's certificate carries."""
    port: int
    """TCP port."""
    connections: ec2.Connections
    """Who may reach it."""

    def attach(self, function: lambda_.Function) -> None:
        """Give a function the way, the permission and the environment to connect."""
