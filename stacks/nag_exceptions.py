"""Findings of the rule sets that are accepted, each with its reason, on the construct concerned."""

from aws_cdk import Acknowledgment, Validations
from constructs import IConstruct


def accept(construct: IConstruct, **reasons: str) -> None:
    """Accept findings of AwsSolutions by their short names, as in `RDS11="…"`."""
    for rule, reason in reasons.items():
        accept_by_id(construct, f"AwsSolutions::AwsSolutions-{rule}", reason)


def accept_serverless(construct: IConstruct, **reasons: str) -> None:
    """Accept findings of Serverless by their short names, as in `LambdaDLQ="…"`."""
    for rule, reason in reasons.items():
        accept_by_id(construct, f"Serverless::Serverless-{rule}", reason)


def accept_by_id(construct: IConstruct, finding: str, reason: str) -> None:
    """Accept one finding by the whole name that the report gives it."""
    Validations.of(construct).acknowledge(Acknowledgment(id=finding, reason=reason))


def accept_zones(construct: IConstruct) -> None:
    """Accept that zones are named: they are a setting."""
    reason = "The zones are a setting: choosing them during synth would need a look-up."
    accept_by_id(construct, "CloudFormation-Validate::W3010", reason)


def accept_permission(construct: IConstruct, permission: str, reason: str) -> None:
    """Accept one permission that is AWS's own policy (IAM4) or has a wildcard (IAM5)."""
    kind = "IAM4" if permission.startswith("Policy::") else "IAM5"
    accept_by_id(construct, f"AwsSolutions::AwsSolutions-{kind}[{permission}]", reason)


def aws_policy(name: str) -> str:
    """Name a policy of AWS's own as the rule set does."""
    return f"Policy::arn:<AWS::Partition>:iam::aws:policy/service-role/{name}"
