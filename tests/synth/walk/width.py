"""How wide each statement is, and why: what is in no row here fails, be it narrow or wide."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.synth.walk import pages
from tests.synth.walk.access import roles_at
from tests.synth.walk.deployed import Deployed, Resource, as_list, statements
from tests.synth.walk.pages import Page


@dataclass(frozen=True)
class Row:
    """One permission or denial: who has it, what for, on what, and why on that much."""

    holder: str
    """A function's folder, or what else a role is for; of a policy of a resource its type."""
    actions: str
    """Names, with spaces between."""
    on: str
    """Text of the resource, or the name of a policy that AWS manages. `${Name}` and `{ECS.Service}`
    are variables as in pages.py; '*' is '*'."""
    why: str
    page: Page
    effect: str = "Allow"
    given: str = ""
    """Keys of its conditions, with spaces between."""


_ARN = "arn:aws:{}:${{Region}}:${{Account}}:{}"
_SECRET = _ARN.format("secretsmanager", "secret:{SecretsManager.Secret}-AbCdEf")
_OWNER = _ARN.format("secretsmanager", "secret:rds!${Owner}")
_GIVEN = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:{}-AbCdEf"
_GROUP = _ARN.format("logs", "log-group:{Logs.LogGroup}:*")
_READ = "secretsmanager:GetSecretValue"
_XRAY = "xray:PutTraceSegments xray:PutTelemetryRecords"
_BASIC = "service-role/AWSLambdaBasicExecutionRole"
_VPC = "service-role/AWSLambdaVPCAccessExecutionRole"
_INTERFACES = (
    "ec2:AssignPrivateIpAddresses ec2:CreateNetworkInterface ec2:DeleteNetworkInterface"
    " ec2:DescribeNetworkInterfaces ec2:DescribeSubnets ec2:DetachNetworkInterface"
    " ec2:UnassignPrivateIpAddresses"
)

IN_VPC = ("users", "notes", "health", "sql", "baseline", "migrate", "rotate")
SQL_ROLES = ("reader", "writer", "caller")
FUNCTIONS = (*IN_VPC, "certificate", "migration_provider", "scopes")

_ONE = "one secret, by its whole ARN"
_NO_RESOURCE = "the action takes no resource"
_WRITES_LOGS = "AWS's own policy: all log groups, since it names none"

ROWS = [
    *(Row(each, _XRAY, "*", _NO_RESOURCE, pages.XRAY) for each in FUNCTIONS),
    *(Row(each, "", _BASIC, _WRITES_LOGS, pages.EXECUTION_ROLE) for each in FUNCTIONS),
    *(
        Row(each, "", _VPC, "interfaces have their ids from Lambda", pages.LAMBDA_VPC)
        for each in IN_VPC
    ),
    *(
        Row(each, _INTERFACES, "*", "a denial, for the function's own code", pages.LAMBDA_VPC,
            "Deny", "lambda:SourceFunctionArn")
        for each in IN_VPC
    ),
    # Secrets and logins.
    *(
        Row(each, _READ, on, _ONE, pages.SECRETS)
        for each, on in (
            *((each, _SECRET) for each in (*IN_VPC, "certificate", "task", "proxy")),
            *((each, _GIVEN.format("supabase"))
              for each in ("users", "notes", "health", "migrate")),
            *((each, _GIVEN.format(role)) for each in ("sql", "migrate") for role in SQL_ROLES),
            *((each, on) for each in ("migrate", "rotate")
              for on in (_OWNER, _GIVEN.format("owner"))),
        )
    ),
    *(
        Row(each, "kms:Decrypt", _ARN.format("kms", "key/${Key}"), "one key",
            pages.KMS, given="kms:ViaService")
        for each in ("users", "notes", "health", "migrate")
    ),
    Row("certificate", "secretsmanager:PutSecretValue", _SECRET, _ONE, pages.SECRETS),
    Row(
        "rotate",
        "secretsmanager:DescribeSecret secretsmanager:PutSecretValue"
        " secretsmanager:UpdateSecretVersionStage",
        _SECRET,
        _ONE,
        pages.ROTATION,
    ),
    Row("rotate", "secretsmanager:GetRandomPassword", "*", _NO_RESOURCE, pages.SECRETS),
    *(
        Row(each, "rds-db:connect", _ARN.format("rds-db", f"dbuser:{on}"), "one user of one server",
            pages.RDS_DB)
        for each, on in (
            *((each, "prx-{RDS.DBProxy}/lambda_pg_user") for each in ("users", "notes", "health")),
            *((each, f"{server}/{user}")
              for each, user in (("migrate", "lambda_pg_owner"), ("proxy", "lambda_pg_user"))
              for server in ("db-{RDS.DBInstance}", "cluster-{RDS.DBCluster}")),
            ("proxy", "db-ABCDEFGHIJKLMNOPQRSTUVWXY/lambda_pg_user"),
            *(("sql", f"prx-{{RDS.DBProxy}}/sql_{role}") for role in SQL_ROLES),
            *(("proxy", f"cluster-{{RDS.DBCluster}}/sql_{role}") for role in SQL_ROLES),
        )
    ),
    # What a deployment needs.
    Row(
        "migration_provider",
        "lambda:InvokeFunction",
        _ARN.format("lambda", "function:{Lambda.Function}:*"),
        "versions of the migration have any number",
        pages.LAMBDA,
    ),
    Row(
        "migration_provider",
        "lambda:InvokeFunction",
        _ARN.format("lambda", "function:{Lambda.Function}"),
        "one function",
        pages.LAMBDA,
    ),
    Row("migration_provider", "cloudformation:DescribeStacks",
        _ARN.format("cloudformation", "stack/${Stack}"), "its own stack", pages.CLOUDFORMATION),
    Row("CDK's provider", "lambda:GetFunction lambda:InvokeFunction",
        _ARN.format("lambda", "function:{Lambda.Function}"), "one function", pages.LAMBDA),
    Row("CDK's provider", "lambda:InvokeFunction",
        _ARN.format("lambda", "function:{Lambda.Function}:*"),
        "CDK allows each version of the one function", pages.LAMBDA),
    Row("CDK's provider", "", _BASIC, _WRITES_LOGS, pages.EXECUTION_ROLE),
    Row("certificate", "ssm:GetParameter ssm:PutParameter",
        _ARN.format("ssm", "parameter/${Stage}/pooler/ca"), "one parameter", pages.SSM),
    Row("CDK's LogRetention", "", _BASIC, _WRITES_LOGS, pages.EXECUTION_ROLE),
    *(
        Row("CDK's LogRetention", "logs:PutRetentionPolicy",
            _ARN.format("logs", f"log-group:{group}:*"), why, pages.RDS_LOGS)
        for group, why in (
            ("/aws/rds/instance/{RDS.DBInstance}/postgresql", "one log group"),
            ("/aws/rds/cluster/{RDS.DBCluster}/postgresql", "one log group"),
            ("/aws/lambda/*-LogRetention*", "its own, whose name CloudFormation makes"),
        )
    ),
    Row("deployment", "", "service-role/AWSCodeDeployRoleForLambdaLimited",
        "AWS's own policy for CodeDeploy's role, which nothing else assumes",
        pages.CODEDEPLOY_ROLE),
    # The pooler's tasks, flow logs, the bastion.
    Row("task", "servicediscovery:DiscoverInstances", "*", "a condition names the namespace",
        pages.MAP, given="servicediscovery:NamespaceName"),
    Row("task execution", "ecr:GetAuthorizationToken", "*", _NO_RESOURCE, pages.ECR),
    Row("task execution",
        "ecr:BatchCheckLayerAvailability ecr:BatchGetImage ecr:GetDownloadUrlForLayer",
        _ARN.format("ecr", "repository/cdk-${Name}"), "one repository", pages.TASK_EXECUTION_ROLE),
    Row("task execution", "logs:CreateLogStream logs:PutLogEvents", _GROUP, "one log group",
        pages.TASK_EXECUTION_ROLE),
    Row("flow logs",
        "logs:CreateLogGroup logs:CreateLogStream logs:DescribeLogStreams logs:PutLogEvents",
        _GROUP, "one log group", pages.FLOW_LOGS),
    Row("flow logs", "logs:DescribeLogGroups", "*", _NO_RESOURCE, pages.FLOW_LOGS),
    Row("bastion", "", "AmazonSSMManagedInstanceCore",
        "AWS's own policy for instances that Session Manager reaches", pages.SESSION_ROLE),
    # Policies of resources, whose '*' is the resource itself.
    Row("SecretsManager.ResourcePolicy", _READ, "*", "a denial, for all but the readers",
        pages.SECRET_POLICIES, "Deny", "aws:PrincipalArn"),
    Row("SecretsManager.ResourcePolicy", "secretsmanager:DeleteSecret", "*",
        "CDK's denial for the account's root", pages.SECRET_POLICIES, "Deny"),
    Row("SNS.TopicPolicy", "sns:Publish", _ARN.format("sns", "{SNS.Topic}"), "one topic",
        pages.TOPIC_POLICY, given="aws:SourceAccount"),
    Row("SNS.TopicPolicy", "sns:Publish", _ARN.format("sns", "{SNS.Topic}"),
        "a denial without TLS", pages.TOPIC_POLICY, "Deny", "aws:SecureTransport"),
    *(
        Row("EC2.VPCEndpoint", "*", "*", "held to this account, which `network.policies` checks",
            pages.ENDPOINT_POLICIES, given=keys)
        for keys in ("aws:PrincipalAccount", "aws:PrincipalAccount aws:ResourceAccount")
    ),
    Row("EC2.VPCEndpoint", "s3:GetObject", "arn:aws:s3:::${Bucket}/*", "AWS's own buckets, by name",
        pages.ECR_ENDPOINTS),
]  # fmt: skip


def widths(app: Deployed) -> Iterator[str]:
    """Check that a row says of each statement why it allows or denies that much."""
    for where, *found in permissions(app):
        if not any(says(row, *found) for row in ROWS):
            holder, effect, action, on, given = found
            yield (
                f"{where}: {holder} has {effect} {action} on {on} given {given or 'nothing'}, and"
                " nothing says why it is that wide: narrow it, or add a row to"
                " tests/synth/walk/width.py"
            )


def says(row: Row, holder: str, effect: str, action: str, on: str, given: str) -> bool:
    """Tell whether a row is about a permission, with all of its conditions."""
    named = row.actions.lower().split() or [""]
    same = (row.holder, row.effect, row.given) == (holder, effect, given)
    return same and action.lower() in named and re.fullmatch(_pattern(row.on), on) is not None


def _pattern(on: str) -> str:
    """Write the pattern of a row's resource, in which only a '*' is a '*'."""
    parts = re.split(r"(\$\{\w+\}|\{[\w.]+\})", on)
    return "".join(_part(part) for part in parts)


def _part(part: str) -> str:
    if part.startswith("${"):
        return r"[^*]+"
    if part.startswith("{"):
        return rf"\{{{re.escape(part[1:-1])} [^{{}}]+\}}"
    return re.escape(part)


def permissions(app: Deployed) -> Iterator[tuple[str, str, str, str, str, str]]:
    """Yield for each action of each statement where it is, who has it, and what `says` compares."""
    for role in app.of_kind("AWS::IAM::Role"):
        holder = holders(app, role)
        for arn in app.texts(role, "ManagedPolicyArns.*"):
            yield str(role), holder, "Allow", "", arn.partition(":policy/")[2], ""
        yield from _of(app, role, holder, role.properties.get("Policies", []))
    for policy in (*app.of_kind("AWS::IAM::Policy"), *app.of_kind("AWS::IAM::ManagedPolicy")):
        for role in roles_at(app, policy, "Roles.*"):
            yield from _of(app, policy, holders(app, role), policy.properties)
    for resource in app.resources:
        if not resource.kind.startswith("AWS::IAM::"):
            holder = resource.kind.removeprefix("AWS::").replace("::", ".")
            yield from _of(app, resource, holder, resource.properties)


def _of(
    app: Deployed, where: Resource, holder: str, value: object
) -> Iterator[tuple[str, str, str, str, str, str]]:
    for _, statement in statements(value):
        given = {key for keys in statement.get("Condition", {}).values() for key in keys}
        for action in as_list(statement["Action"]):
            for each in as_list(statement["Resource"]):
                on = app.text(where.stack, each)
                yield str(where), holder, statement["Effect"], action, on, " ".join(sorted(given))


_USERS = {
    ("AWS::CodeDeploy::DeploymentGroup", "ServiceRoleArn"): "deployment",
    ("AWS::EC2::FlowLog", "DeliverLogsPermissionArn"): "flow logs",
    ("AWS::ECS::TaskDefinition", "ExecutionRoleArn"): "task execution",
    ("AWS::ECS::TaskDefinition", "TaskRoleArn"): "task",
    ("AWS::IAM::InstanceProfile", "Roles.*"): "bastion",
    ("AWS::RDS::DBProxy", "RoleArn"): "proxy",
}


def holders(app: Deployed, role: Resource) -> str:
    """Say what has a role: a function by its folder."""
    for function in app.of_kind("AWS::Lambda::Function"):
        if role.label in "".join(app.texts(function, "Role")):
            tags = {tag["Key"]: tag["Value"] for tag in function.properties.get("Tags", [])}
            own = "CDK's LogRetention" if "LogRetention" in function.name else "CDK's provider"
            return str(tags.get("lambda-pg:function", own))
    for (kind, path), name in _USERS.items():
        for resource in app.of_kind(kind):
            if role.label in "".join(app.texts(resource, path)):
                return name
    return f"the role {role.name}"
