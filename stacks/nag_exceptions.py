"""Suppress a finding of the rule sets: on the construct concerned, and with its reason."""

from aws_cdk import Acknowledgment, Validations
from constructs import IConstruct


def suppress(construct: IConstruct, **reasons: str) -> None:
    """Suppress findings of AwsSolutions by their short names, as in `RDS11="…"`."""
    for rule, reason in reasons.items():
        suppress_by_id(construct, f"AwsSolutions::AwsSolutions-{rule}", reason)


def suppress_serverless(construct: IConstruct, **reasons: str) -> None:
    """Suppress findings of Serverless by their short names, as in `LambdaDLQ="…"`."""
    for rule, reason in reasons.items():
        suppress_by_id(construct, f"Serverless::Serverless-{rule}", reason)


def suppress_by_id(construct: IConstruct, finding: str, reason: str) -> None:
    """Suppress one finding by its full name in the report."""
    Validations.of(construct).acknowledge(Acknowledgment(id=finding, reason=reason))


def suppress_zones(construct: IConstruct) -> None:
    """Suppress the finding that zones are named: they are a setting."""
    reason = "The zones are a setting: choosing them during synth would need a look-up."
    suppress_by_id(construct, "CloudFormation-Validate::W3010", reason)


def suppress_permission(construct: IConstruct, permission: str, reason: str) -> None:
    """Suppress the finding of one permission: an AWS managed policy (IAM4) or a wildcard (IAM5)."""
    kind = "IAM4" if permission.startswith("Policy::") else "IAM5"
    suppress_by_id(construct, f"AwsSolutions::AwsSolutions-{kind}[{permission}]", reason)


def aws_policy(name: str) -> str:
    """Name an AWS managed policy as the rule set does."""
    return f"Policy::arn:<AWS::Partition>:iam::aws:policy/service-role/{name}"
