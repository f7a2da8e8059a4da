"""What AWS documents of the actions, metrics, principals and values that the stacks use.

Each row is written from the page that it cites, never from a template: the modules beside this one
hold the templates against it. A template that needs a row which is missing here fails a test, so
that somebody looks the page up first.

Texts have three kinds of variables:

- `${Region}`, as the Service Authorization Reference writes them, is any text;
- `*` is any text;
- `{ECS.Service}` is the name that CloudFormation gives to a resource of type `AWS::ECS::Service`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    """One page of AWS's documentation, or an address where it says nothing."""

    title: str
    path: str

    def __str__(self) -> str:
        """Say what to read."""
        elsewhere = self.path.startswith("https://")
        return f"{self.title!r}, {'' if elsewhere else 'https://docs.aws.amazon.com/'}{self.path}"


LOOK_IT_UP = "look its page up and add a row to tests/synth/walk/pages.py"


def _authorization(service: str, prefix: str) -> Page:
    title = f"Actions, resources, and condition keys for {service}"
    return Page(title, f"service-authorization/latest/reference/list_{prefix}.html")


def _template(resource: str, file: str) -> Page:
    return Page(resource, f"AWSCloudFormation/latest/UserGuide/aws-resource-{file}.html")


CLOUDFORMATION = _authorization("AWS CloudFormation", "cloudformation")
EC2 = _authorization("Amazon EC2", "ec2")
ECR = _authorization("Amazon Elastic Container Registry", "ecr")
KMS = _authorization("AWS Key Management Service", "kms")
LAMBDA = _authorization("AWS Lambda", "lambda")
LOGS = _authorization("Amazon CloudWatch Logs", "logs")
MAP = _authorization("AWS Cloud Map", "servicediscovery")
RDS_DB = _authorization("Amazon RDS IAM Authentication", "rds-db")
SECRETS = _authorization("AWS Secrets Manager", "secretsmanager")
SNS = _authorization("Amazon SNS", "sns")
SSM = _authorization("AWS Systems Manager", "ssm")
STS = _authorization("AWS Security Token Service", "sts")
XRAY = _authorization("AWS X-Ray", "xray")

GLOBAL = Page(
    "AWS global condition context keys",
    "IAM/latest/UserGuide/reference_policies_condition-keys.html",
)
LAMBDA_METRICS = Page(
    "Types of metrics for Lambda functions", "lambda/latest/dg/monitoring-metrics-types.html"
)
API_METRICS = Page(
    "Monitor CloudWatch metrics for HTTP APIs in API Gateway",
    "apigateway/latest/developerguide/http-api-metrics.html",
)
ECS_METRICS = Page(
    "Amazon ECS CloudWatch metrics", "AmazonECS/latest/developerguide/available-metrics.html"
)
BALANCER_METRICS = Page(
    "CloudWatch metrics for your Network Load Balancer",
    "elasticloadbalancing/latest/network/load-balancer-cloudwatch-metrics.html",
)
RDS_METRICS = Page(
    "Amazon CloudWatch metrics for Amazon RDS", "AmazonRDS/latest/UserGuide/rds-metrics.html"
)
AURORA_DIMENSIONS = Page(
    "Amazon CloudWatch dimensions for Aurora", "AmazonRDS/latest/AuroraUserGuide/dimensions.html"
)
PROXY_METRICS = Page(
    "Monitoring RDS Proxy metrics with Amazon CloudWatch",
    "AmazonRDS/latest/UserGuide/rds-proxy.monitoring.html",
)
SCALING_METRICS = Page(
    "PredefinedMetricSpecification",
    "autoscaling/application/APIReference/API_PredefinedMetricSpecification.html",
)

EXECUTION_ROLE = Page(
    "Defining Lambda function permissions with an execution role",
    "lambda/latest/dg/lambda-intro-execution-role.html",
)
SOURCE_FUNCTION = Page(
    "Using source function ARN to control function access behavior",
    "lambda/latest/dg/permissions-source-function-arn.html",
)
"""Only requests of a function's code carry the key, Lambda's own for the function do not."""
LAMBDA_VPC = Page(
    "Giving Lambda functions access to resources in an Amazon VPC",
    "lambda/latest/dg/configuration-vpc.html",
)
LAMBDA_XRAY = Page(
    "Visualize Lambda function invocations using AWS X-Ray", "lambda/latest/dg/services-xray.html"
)
TASK_EXECUTION_ROLE = Page(
    "Amazon ECS task execution IAM role",
    "AmazonECS/latest/developerguide/task_execution_IAM_role.html",
)
TASK_ROLE = Page("Amazon ECS task IAM role", "AmazonECS/latest/developerguide/task-iam-roles.html")
FLOW_LOGS = Page(
    "IAM role for publishing flow logs to CloudWatch Logs",
    "vpc/latest/userguide/flow-logs-iam-role.html",
)
CODEDEPLOY_ROLE = Page(
    "Step 2: Create a service role for CodeDeploy",
    "codedeploy/latest/userguide/getting-started-create-service-role.html",
)
PROXY_ROLE = Page(
    "Configuring IAM authentication for RDS Proxy",
    "AmazonRDS/latest/UserGuide/rds-proxy-iam-setup.html",
)
INSTANCE_PROFILE = Page(
    "IAM roles for Amazon EC2", "AWSEC2/latest/UserGuide/iam-roles-for-amazon-ec2.html"
)
SESSION_ROLE = Page(
    "Step 2: Verify or add instance permissions for Session Manager",
    "systems-manager/latest/userguide/session-manager-getting-started-instance-profile.html",
)
ROTATION = Page(
    "Lambda rotation function execution role permissions for AWS Secrets Manager",
    "secretsmanager/latest/userguide/rotating-secrets-required-permissions-function.html",
)
TOPIC_POLICY = Page(
    "Example cases for Amazon SNS access control", "sns/latest/dg/sns-access-policy-use-cases.html"
)
TOPIC_KEY = Page(
    "Managing Amazon SNS encryption keys and costs", "sns/latest/dg/sns-key-management.html"
)
INVOKED_BY_API = Page(
    "Create AWS Lambda proxy integrations for HTTP APIs in API Gateway",
    "apigateway/latest/developerguide/http-api-develop-integrations-lambda.html",
)
INVOKED_BY_EVENTS = Page(
    "Using resource-based policies for Amazon EventBridge",
    "eventbridge/latest/userguide/eb-use-resource-based.html",
)
INVOKED_BY_COGNITO = Page(
    "Customizing user pool workflows with Lambda triggers",
    "cognito/latest/developerguide/cognito-user-pools-working-with-lambda-triggers.html",
)
CUSTOM_RESOURCE = Page(
    "Lambda-backed custom resources",
    "AWSCloudFormation/latest/UserGuide/template-custom-resources-lambda.html",
)
TARGETS = Page(
    "TargetHealth (Amazon RDS API Reference)", "AmazonRDS/latest/APIReference/API_TargetHealth.html"
)
"""A target's reasons to be unavailable: AUTH_FAILURE is one."""
GROUP_RULES = Page("Security group rules", "vpc/latest/userguide/security-group-rules.html")
SERVICES_OF_ENDPOINTS = Page(
    "AWS services that integrate with AWS PrivateLink",
    "vpc/latest/privatelink/aws-services-privatelink-support.html",
)
ENDPOINT_POLICIES = Page(
    "Control access to VPC endpoints using endpoint policies",
    "vpc/latest/privatelink/vpc-endpoints-access.html",
)
SECRET_POLICIES = Page(
    "Resource-based policies",
    "secretsmanager/latest/userguide/auth-and-access_resource-policies.html",
)
RDS_LOGS = Page(
    "Publishing PostgreSQL logs to Amazon CloudWatch Logs",
    "AmazonRDS/latest/UserGuide/USER_LogAccess.Concepts.PostgreSQL.PublishtoCloudWatchLogs.html",
)
ECR_ENDPOINTS = Page(
    "Amazon ECR interface VPC endpoints (AWS PrivateLink)",
    "AmazonECR/latest/userguide/vpc-endpoints.html",
)
MAP_ENDPOINTS = Page(
    "Access AWS Cloud Map using an interface endpoint (AWS PrivateLink)",
    "cloud-map/latest/dg/vpc-interface-endpoints.html",
)


# Identity and access: what each action is for, which resources it takes and which condition keys.


@dataclass(frozen=True)
class Action:
    """What the Service Authorization Reference says of one action."""

    page: Page
    resources: tuple[str, ...] = ()
    """ARNs of the resource types it takes, each one of them; none: `Resource` can only be '*'."""
    keys: tuple[str, ...] = ()
    """Condition keys of the service; those of `GLOBAL_KEYS` go with every action."""


_SECRET = ("arn:${Partition}:secretsmanager:${Region}:${Account}:secret:${SecretId}",)
_SECRET_KEYS = (
    "secretsmanager:SecretId",
    "secretsmanager:SecretPrimaryRegion",
    "secretsmanager:ResourceTag/tag-key",
    "secretsmanager:resource/AllowRotationLambdaArn",
    "secretsmanager:resource/Type",
)
_FUNCTION = ("arn:${Partition}:lambda:${Region}:${Account}:function:${FunctionName}",)
_GROUP = ("arn:${Partition}:logs:${Region}:${Account}:log-group:${LogGroupName}",)
_STREAM = ("arn:${Partition}:logs:${Region}:${Account}:log-group:${LogGroupName}:*",)
"""On the page, what follows is `log-stream:${LogStreamName}`."""
_PARAMETER = ("arn:${Partition}:ssm:${Region}:${Account}:parameter/${Name}",)
_INTERFACE = "arn:${Partition}:ec2:${Region}:${Account}:network-interface/${NetworkInterfaceId}"
_REPOSITORY = ("arn:${Partition}:ecr:${Region}:${Account}:repository/${RepositoryName}",)
_KEY = ("arn:${Partition}:kms:${Region}:${Account}:key/${KeyId}",)
_KEY_KEYS = ("kms:CallerAccount", "kms:ViaService", "kms:EncryptionContext:${EncryptionContextKey}")

ACTIONS = {
    "cloudformation:DescribeStacks": Action(
        CLOUDFORMATION,
        ("arn:${Partition}:cloudformation:${Region}:${Account}:stack/${StackName}/${Id}",),
    ),
    "ec2:AssignPrivateIpAddresses": Action(EC2, (_INTERFACE,)),
    "ec2:CreateNetworkInterface": Action(
        EC2,
        (
            _INTERFACE,
            "arn:${Partition}:ec2:${Region}:${Account}:security-group/${SecurityGroupId}",
            "arn:${Partition}:ec2:${Region}:${Account}:subnet/${SubnetId}",
        ),
    ),
    "ec2:DeleteNetworkInterface": Action(EC2, (_INTERFACE,)),
    "ec2:DescribeNetworkInterfaces": Action(EC2),
    "ec2:DescribeSubnets": Action(EC2),
    "ec2:DetachNetworkInterface": Action(
        EC2, ("arn:${Partition}:ec2:${Region}:${Account}:instance/${InstanceId}", _INTERFACE)
    ),
    "ec2:UnassignPrivateIpAddresses": Action(EC2, (_INTERFACE,)),
    "ecr:BatchCheckLayerAvailability": Action(ECR, _REPOSITORY),
    "ecr:BatchGetImage": Action(ECR, _REPOSITORY),
    "ecr:GetAuthorizationToken": Action(ECR),
    "ecr:GetDownloadUrlForLayer": Action(ECR, _REPOSITORY),
    "kms:Decrypt": Action(KMS, _KEY, _KEY_KEYS),
    "kms:GenerateDataKey": Action(KMS, _KEY, _KEY_KEYS),
    "lambda:GetFunction": Action(LAMBDA, _FUNCTION),
    "lambda:GetFunctionConfiguration": Action(LAMBDA, _FUNCTION),
    "lambda:InvokeFunction": Action(
        LAMBDA, _FUNCTION, ("lambda:EventSourceToken", "lambda:InvokedViaFunctionUrl")
    ),
    "logs:CreateLogGroup": Action(LOGS, _GROUP),
    "logs:CreateLogStream": Action(LOGS, _STREAM),
    "logs:DeleteRetentionPolicy": Action(LOGS, _GROUP),
    "logs:DescribeLogGroups": Action(LOGS),
    "logs:DescribeLogStreams": Action(LOGS, _GROUP),
    "logs:PutLogEvents": Action(LOGS, _STREAM),
    "logs:PutRetentionPolicy": Action(LOGS, _GROUP),
    "rds-db:connect": Action(
        RDS_DB, ("arn:${Partition}:rds-db:${Region}:${Account}:dbuser:${ResourceId}/${DbUserName}",)
    ),
    "secretsmanager:DeleteSecret": Action(
        SECRETS,
        _SECRET,
        (
            *_SECRET_KEYS,
            "secretsmanager:RecoveryWindowInDays",
            "secretsmanager:ForceDeleteWithoutRecovery",
        ),
    ),
    "secretsmanager:DescribeSecret": Action(SECRETS, _SECRET, _SECRET_KEYS),
    "secretsmanager:GetRandomPassword": Action(SECRETS),
    "secretsmanager:GetSecretValue": Action(
        SECRETS,
        _SECRET,
        (*_SECRET_KEYS, "secretsmanager:VersionId", "secretsmanager:VersionStage"),
    ),
    "secretsmanager:PutSecretValue": Action(SECRETS, _SECRET, _SECRET_KEYS),
    "secretsmanager:UpdateSecret": Action(
        SECRETS,
        _SECRET,
        (
            *_SECRET_KEYS,
            "secretsmanager:Description",
            "secretsmanager:KmsKeyArn",
            "secretsmanager:KmsKeyId",
            "secretsmanager:Type",
        ),
    ),
    "secretsmanager:UpdateSecretVersionStage": Action(
        SECRETS, _SECRET, (*_SECRET_KEYS, "secretsmanager:VersionStage")
    ),
    "servicediscovery:DiscoverInstances": Action(
        MAP,
        (
            "arn:${Partition}:servicediscovery:${Region}:${Account}:namespace/${NamespaceId}",
            "arn:${Partition}:servicediscovery:${Region}:${Account}:service/${ServiceId}",
        ),
        ("servicediscovery:NamespaceName", "servicediscovery:ServiceName"),
    ),
    "sns:Publish": Action(SNS, ("arn:${Partition}:sns:${Region}:${Account}:${TopicName}",)),
    "ssm:GetParameter": Action(SSM, _PARAMETER, ("ssm:resourceTag/tag-key",)),
    "ssm:PutParameter": Action(SSM, _PARAMETER, ("ssm:Overwrite", "ssm:resourceTag/tag-key")),
    "sts:AssumeRole": Action(
        STS,
        ("arn:${Partition}:iam::${Account}:role/${RoleNameWithPath}",),
        ("sts:ExternalId", "sts:RoleSessionName"),
    ),
    "xray:PutTelemetryRecords": Action(XRAY),
    "xray:PutTraceSegments": Action(XRAY, (), ("logs:LogGeneratingResourceArns",)),
}

GLOBAL_KEYS = (
    "aws:SecureTransport",
    "aws:SourceAccount",
    "aws:SourceArn",
    "aws:SourceVpc",
    "aws:SourceVpce",
    "aws:PrincipalAccount",
    "aws:PrincipalArn",
    "aws:ResourceAccount",
    "lambda:SourceFunctionArn",
)
"""Of `GLOBAL`, the last one of `SOURCE_FUNCTION`.

`aws:SourceOwner` is not there: it is an old name that some services keep.
"""


@dataclass(frozen=True)
class ManagedPolicy:
    """A policy of AWS's own: what it allows, of that which the stacks rely on."""

    page: Page
    actions: tuple[str, ...]


def _managed(name: str) -> Page:
    return Page(name, f"aws-managed-policy/latest/reference/{name}.html")


MANAGED_POLICIES = {
    "service-role/AWSLambdaBasicExecutionRole": ManagedPolicy(
        _managed("AWSLambdaBasicExecutionRole"),
        ("logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"),
    ),
    "service-role/AWSLambdaVPCAccessExecutionRole": ManagedPolicy(
        _managed("AWSLambdaVPCAccessExecutionRole"),
        (
            "logs:CreateLogGroup",
            "logs:CreateLogStream",
            "logs:PutLogEvents",
            "ec2:CreateNetworkInterface",
            "ec2:DescribeNetworkInterfaces",
            "ec2:DescribeSubnets",
            "ec2:DeleteNetworkInterface",
            "ec2:AssignPrivateIpAddresses",
            "ec2:UnassignPrivateIpAddresses",
        ),
    ),
    "service-role/AWSCodeDeployRoleForLambdaLimited": ManagedPolicy(
        _managed("AWSCodeDeployRoleForLambdaLimited"),
        ("cloudwatch:DescribeAlarms", "lambda:GetAlias", "lambda:UpdateAlias"),
    ),
    "AmazonSSMManagedInstanceCore": ManagedPolicy(
        _managed("AmazonSSMManagedInstanceCore"),
        (
            "ssm:UpdateInstanceInformation",
            "ssmmessages:CreateControlChannel",
            "ssmmessages:CreateDataChannel",
            "ssmmessages:OpenControlChannel",
            "ssmmessages:OpenDataChannel",
            "ec2messages:GetMessages",
        ),
    ),
}


# Metrics: where they are, what they are split by, and what can be asked of them.


@dataclass(frozen=True)
class Metric:
    """One metric, in one of the ways in which it can be asked for."""

    namespace: str
    name: str
    dimensions: frozenset[str]
    statistics: tuple[str, ...]
    """Those that the page calls useful; 'p*' is any percentile."""
    page: Page
    only_period: int | None = None
    """Seconds, where a longer period would add samples up that must not be added."""


def _metrics(
    namespace: str,
    names: str,
    dimensions: str,
    statistics: str,
    page: Page,
    only_period: int | None = None,
) -> list[Metric]:
    by, of = frozenset(dimensions.split()), tuple(statistics.split())
    return [Metric(namespace, name, by, of, page, only_period) for name in names.split()]


PERIOD = 60
"""Seconds between two data points of every metric below, as each page says."""

METRICS = [
    *_metrics("AWS/Lambda", "Errors Throttles", "FunctionName", "Sum", LAMBDA_METRICS),
    *_metrics("AWS/Lambda", "Errors", "FunctionName Resource", "Sum", LAMBDA_METRICS),
    *_metrics("AWS/Lambda", "Duration", "FunctionName", "Average Maximum p*", LAMBDA_METRICS),
    *_metrics("AWS/ApiGateway", "5xx", "ApiId Stage", "Sum", API_METRICS),
    *_metrics(
        "AWS/ECS",
        "CPUUtilization",
        "ClusterName ServiceName",
        "Average Minimum Maximum",
        ECS_METRICS,
    ),
    # Each node of the balancer counts for itself; the page recommends the highest count.
    *_metrics(
        "AWS/NetworkELB",
        "HealthyHostCount",
        "LoadBalancer TargetGroup",
        "Maximum",
        BALANCER_METRICS,
    ),
    *_metrics(
        "AWS/RDS",
        "DatabaseConnections",
        "DBInstanceIdentifier",
        "Average Minimum Maximum",
        RDS_METRICS,
    ),
    *_metrics(
        "AWS/RDS",
        "DatabaseConnections",
        "DBClusterIdentifier",
        "Average Minimum Maximum",
        AURORA_DIMENSIONS,
    ),
    # "Valid period: 1 minute": each node of the proxy reports one a minute, and the sum is it.
    *_metrics(
        "AWS/RDS",
        "DatabaseConnections DatabaseConnectionsCurrentlySessionPinned",
        "ProxyName",
        "Sum",
        PROXY_METRICS,
        60,
    ),
    *_metrics(
        "AWS/RDS",
        "ClientConnectionsSetupFailedAuth DatabaseConnectionsSetupFailed",
        "ProxyName",
        "Sum",
        PROXY_METRICS,
    ),
    *_metrics("AWS/RDS", "DatabaseConnectionsBorrowLatency", "ProxyName", "Average", PROXY_METRICS),
]

SHOWN = [
    *_metrics(
        "AWS/ApiGateway",
        "4xx 5xx Count IntegrationLatency Latency",
        "ApiId Stage",
        "*",
        API_METRICS,
    ),
    # Of functions that read a stream or have provisioned concurrency; empty for those of this app.
    *_metrics(
        "AWS/Lambda",
        "ConcurrentExecutions Invocations IteratorAge ProvisionedConcurrencySpilloverInvocations",
        "FunctionName",
        "*",
        LAMBDA_METRICS,
    ),
]
"""What the dashboard shows besides that which alarms watch, in any statistic."""

PREDEFINED_METRICS = {"ECSServiceAverageCPUUtilization": SCALING_METRICS}
"""What Application Auto Scaling can track by name, of a service of ECS."""


@dataclass(frozen=True)
class Dimension:
    """What the value of a dimension is."""

    value: str
    page: Page
    lower: str | None = None
    """Property that names the resource and that the service stores in lower case, whatever its
    case was, where it is set; a name that the template does not take from a resource has to be in
    lower case as well."""


DIMENSIONS = {
    ("AWS/Lambda", "FunctionName"): Dimension("{Lambda.Function}", LAMBDA_METRICS),
    ("AWS/Lambda", "Resource"): Dimension("{Lambda.Function}:*", LAMBDA_METRICS),
    ("AWS/ApiGateway", "ApiId"): Dimension("{ApiGatewayV2.Api}", API_METRICS),
    ("AWS/ApiGateway", "Stage"): Dimension("$default", API_METRICS),
    ("AWS/ECS", "ClusterName"): Dimension("{ECS.Cluster}", ECS_METRICS),
    ("AWS/ECS", "ServiceName"): Dimension("{ECS.Service}", ECS_METRICS),
    ("AWS/NetworkELB", "LoadBalancer"): Dimension(
        "net/{ElasticLoadBalancingV2.LoadBalancer}/*", BALANCER_METRICS
    ),
    ("AWS/NetworkELB", "TargetGroup"): Dimension(
        "targetgroup/{ElasticLoadBalancingV2.TargetGroup}/*", BALANCER_METRICS
    ),
    ("AWS/RDS", "DBInstanceIdentifier"): Dimension(
        "{RDS.DBInstance}",
        Page("CreateDBInstance", "AmazonRDS/latest/APIReference/API_CreateDBInstance.html"),
        "DBInstanceIdentifier",
    ),
    ("AWS/RDS", "DBClusterIdentifier"): Dimension(
        "{RDS.DBCluster}",
        Page("CreateDBCluster", "AmazonRDS/latest/APIReference/API_CreateDBCluster.html"),
        "DBClusterIdentifier",
    ),
    ("AWS/RDS", "ProxyName"): Dimension(
        "{RDS.DBProxy}",
        # No page of AWS's says it of proxies; a deployment showed it.
        Page("aws-rds: dbProxyName case mismatch", "https://github.com/aws/aws-cdk/issues/38270"),
        "DBProxyName",
    ),
}


# Trust: who assumes a role and what for, and who calls a function or a topic.


@dataclass(frozen=True)
class Trust:
    """A property that names a role, and the service that assumes it."""

    resource: str
    path: str
    service: str
    page: Page


TRUSTS = [
    Trust("AWS::CodeDeploy::DeploymentGroup", "ServiceRoleArn", "codedeploy", CODEDEPLOY_ROLE),
    Trust("AWS::EC2::FlowLog", "DeliverLogsPermissionArn", "vpc-flow-logs", FLOW_LOGS),
    Trust("AWS::ECS::TaskDefinition", "ExecutionRoleArn", "ecs-tasks", TASK_EXECUTION_ROLE),
    Trust("AWS::ECS::TaskDefinition", "TaskRoleArn", "ecs-tasks", TASK_ROLE),
    Trust("AWS::IAM::InstanceProfile", "Roles.*", "ec2", INSTANCE_PROFILE),
    Trust("AWS::Lambda::Function", "Role", "lambda", EXECUTION_ROLE),
    Trust("AWS::RDS::DBProxy", "RoleArn", "rds", PROXY_ROLE),
]


@dataclass(frozen=True)
class Need:
    """What a role has to allow because of a property beside it."""

    resource: str
    role: str
    """Path of the property that names the role."""
    when: str
    """Path of a property: with it, the role needs the actions; '=X' asks for the value X."""
    actions: tuple[str, ...]
    page: Page
    on: str | None = None
    """Path of the property that names what they are for; None: any resource will do."""


_PULL = (
    "ecr:GetAuthorizationToken",
    "ecr:BatchCheckLayerAvailability",
    "ecr:GetDownloadUrlForLayer",
    "ecr:BatchGetImage",
)
_WRITE_LOGS = ("logs:CreateLogStream", "logs:PutLogEvents")
_READ_SECRET = ("secretsmanager:GetSecretValue",)

NEEDS = [
    Need(
        "AWS::CodeDeploy::DeploymentGroup",
        "ServiceRoleArn",
        "AlarmConfiguration",
        ("cloudwatch:DescribeAlarms", "lambda:GetAlias", "lambda:UpdateAlias"),
        CODEDEPLOY_ROLE,
    ),
    Need(
        "AWS::EC2::FlowLog",
        "DeliverLogsPermissionArn",
        "LogGroupName",
        (
            "logs:CreateLogGroup",
            "logs:CreateLogStream",
            "logs:PutLogEvents",
            "logs:DescribeLogGroups",
            "logs:DescribeLogStreams",
        ),
        FLOW_LOGS,
        "LogGroupName",
    ),
    Need(
        "AWS::ECS::TaskDefinition",
        "ExecutionRoleArn",
        "ContainerDefinitions.*.LogConfiguration.LogDriver=awslogs",
        _WRITE_LOGS,
        TASK_EXECUTION_ROLE,
        "ContainerDefinitions.*.LogConfiguration.Options.awslogs-group",
    ),
    Need(
        "AWS::ECS::TaskDefinition",
        "ExecutionRoleArn",
        "ContainerDefinitions.*.Image=*.dkr.ecr.*",
        _PULL,
        TASK_EXECUTION_ROLE,
    ),
    Need(
        "AWS::IAM::InstanceProfile",
        "Roles.*",
        "Roles",
        (
            "ssm:UpdateInstanceInformation",
            "ssmmessages:CreateControlChannel",
            "ssmmessages:CreateDataChannel",
            "ssmmessages:OpenControlChannel",
            "ssmmessages:OpenDataChannel",
        ),
        SESSION_ROLE,
    ),
    Need("AWS::Lambda::Function", "Role", "LoggingConfig", _WRITE_LOGS, EXECUTION_ROLE),
    Need(
        "AWS::Lambda::Function",
        "Role",
        "TracingConfig.Mode=Active",
        ("xray:PutTraceSegments", "xray:PutTelemetryRecords"),
        LAMBDA_XRAY,
    ),
    Need(
        "AWS::Lambda::Function",
        "Role",
        "VpcConfig",
        (
            "ec2:CreateNetworkInterface",
            "ec2:DescribeNetworkInterfaces",
            "ec2:DescribeSubnets",
            "ec2:DeleteNetworkInterface",
            "ec2:AssignPrivateIpAddresses",
            "ec2:UnassignPrivateIpAddresses",
        ),
        LAMBDA_VPC,
    ),
    Need("AWS::RDS::DBProxy", "RoleArn", "Auth", _READ_SECRET, PROXY_ROLE, "Auth.*.SecretArn"),
    Need(
        "AWS::RDS::DBProxy",
        "RoleArn",
        "DefaultAuthScheme=IAM_AUTH",
        ("rds-db:connect",),
        PROXY_ROLE,
    ),
]


@dataclass(frozen=True)
class Variable:
    """A variable of a function's or a task's environment, and what its code calls with it."""

    actions: tuple[str, ...]
    page: Page
    arn: str = "${Value}"
    """What the role has to name; `${Value}` is the variable's own value."""


VARIABLES = {
    ("AWS::Lambda::Function", "LAMBDA_PG_SECRET_ARN"): Variable(_READ_SECRET, SECRETS),
    ("AWS::Lambda::Function", "APP_SECRET_ARN"): Variable(_READ_SECRET, SECRETS),
    ("AWS::Lambda::Function", "SQL_KEYS_SECRET_ARN"): Variable(_READ_SECRET, SECRETS),
    ("AWS::Lambda::Function", "AUTHORITY_SECRET_ARN"): Variable(
        ("secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue"), SECRETS
    ),
    ("AWS::Lambda::Function", "CERTIFICATE_SECRET_ARN"): Variable(
        ("secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue"), SECRETS
    ),
    ("AWS::Lambda::Function", "CA_PARAMETER"): Variable(
        ("ssm:GetParameter", "ssm:PutParameter"), SSM, "*:parameter${Value}"
    ),
    ("AWS::Lambda::Function", "USER_ON_EVENT_FUNCTION_ARN"): Variable(
        ("lambda:InvokeFunction", "lambda:GetFunction"), LAMBDA
    ),
    ("AWS::Lambda::Function", "LAMBDA_PG_AUTH"): Variable(("rds-db:connect",), RDS_DB, "*"),
    ("AWS::ECS::TaskDefinition", "USER_SECRET_ARNS"): Variable(_READ_SECRET, SECRETS),
    ("AWS::ECS::TaskDefinition", "SQL_SECRET_ARNS"): Variable(_READ_SECRET, SECRETS),
    ("AWS::ECS::TaskDefinition", "CERTIFICATE_SECRET_ARN"): Variable(_READ_SECRET, SECRETS),
    ("AWS::ECS::TaskDefinition", "PEERS_NAMESPACE"): Variable(
        ("servicediscovery:DiscoverInstances",), MAP, "*"
    ),
}
"""The code is ours; the pages say that the calls need these actions."""

ROTATES = (
    "secretsmanager:DescribeSecret",
    "secretsmanager:GetSecretValue",
    "secretsmanager:PutSecretValue",
    "secretsmanager:UpdateSecretVersionStage",
)
"""What a rotation function needs on the secret that it rotates, says `ROTATION`."""


@dataclass(frozen=True)
class Caller:
    """A service that calls a function or a topic on behalf of a resource."""

    service: str
    action: str
    resource: str
    path: str
    """Path of the property that names what is called."""
    page: Page


CALLERS = [
    Caller("cloudwatch", "sns:Publish", "AWS::CloudWatch::Alarm", f"{kind}Actions.*", TOPIC_POLICY)
    for kind in ("Alarm", "OK", "InsufficientData")
] + [
    Caller(
        "apigateway",
        "lambda:InvokeFunction",
        "AWS::ApiGatewayV2::Integration",
        "IntegrationUri",
        INVOKED_BY_API,
    ),
    Caller(
        "events", "lambda:InvokeFunction", "AWS::Events::Rule", "Targets.*.Arn", INVOKED_BY_EVENTS
    ),
    Caller(
        "secretsmanager",
        "lambda:InvokeFunction",
        "AWS::SecretsManager::RotationSchedule",
        "RotationLambdaARN",
        ROTATION,
    ),
    Caller(
        "cognito-idp",
        "lambda:InvokeFunction",
        "AWS::Cognito::UserPool",
        "LambdaConfig.PreTokenGenerationConfig.LambdaArn",
        INVOKED_BY_COGNITO,
    ),
]


# The network: what a private subnet without NAT reaches, and what for.


@dataclass(frozen=True)
class Endpoint:
    """What one endpoint's service is for."""

    kind: str
    prefixes: tuple[str, ...]
    """Of the actions that go through it."""
    page: Page
    keys: tuple[str, ...] = ("aws:PrincipalAccount", "aws:ResourceAccount")
    """What its policy has to hold to this account, where there is a policy."""
    buckets: tuple[str, ...] = ()
    """Of AWS's own, that are read without a principal of this account."""


ENDPOINTS = {  # by the service's name, without com.amazonaws.<region>
    "ecr.api": Endpoint("Interface", ("ecr",), ECR_ENDPOINTS),
    "ecr.dkr": Endpoint("Interface", ("ecr",), ECR_ENDPOINTS),
    "s3": Endpoint(
        "Gateway",
        ("ecr",),
        ECR_ENDPOINTS,
        buckets=(
            "arn:aws:s3:::prod-${Region}-starport-layer-bucket/*",
            "arn:aws:s3:::al2023-repos-${Region}-de612dc2/*",
        ),
    ),
    "logs": Endpoint("Interface", ("logs",), SERVICES_OF_ENDPOINTS),
    "secretsmanager": Endpoint("Interface", ("secretsmanager",), SERVICES_OF_ENDPOINTS),
    # Its page names no policy, and EC2 refuses one for a service that takes none.
    "data-servicediscovery": Endpoint("Interface", ("servicediscovery",), MAP_ENDPOINTS, ()),
    # Session Manager's documents belong to AWS: by the principal's account alone.
    **{
        name: Endpoint("Interface", (name,), SERVICES_OF_ENDPOINTS, ("aws:PrincipalAccount",))
        for name in ("ssm", "ssmmessages", "ec2messages")
    },
}


# CloudFormation: what Ref and Fn::GetAtt return.


@dataclass(frozen=True)
class Returned:
    """What CloudFormation's page of a resource says that an attribute is; `{}` is its name."""

    value: str
    page: Page
    property: str | None = None
    """The property whose value it is, where the template sets it."""


def _arn(rest: str) -> str:
    service, _, resource = rest.partition(":")
    return f"arn:aws:{service}:eu-west-1:111122223333:{resource}"


_API = _template("AWS::ApiGatewayV2::Api", "apigatewayv2-api")
_LOG_GROUP = _template("AWS::Logs::LogGroup", "logs-loggroup")
_LAMBDA_FUNCTION = _template("AWS::Lambda::Function", "lambda-function")
_LAMBDA_ALIAS = _template("AWS::Lambda::Alias", "lambda-alias")
_LAMBDA_VERSION = _template("AWS::Lambda::Version", "lambda-version")
_ROLE = _template("AWS::IAM::Role", "iam-role")
_DB_INSTANCE = _template("AWS::RDS::DBInstance", "rds-dbinstance")
_DB_CLUSTER = _template("AWS::RDS::DBCluster", "rds-dbcluster")
_DB_PROXY = _template("AWS::RDS::DBProxy", "rds-dbproxy")
_ECS_CLUSTER = _template("AWS::ECS::Cluster", "ecs-cluster")
_ECS_SERVICE = _template("AWS::ECS::Service", "ecs-service")
_BALANCER = _template(
    "AWS::ElasticLoadBalancingV2::LoadBalancer", "elasticloadbalancingv2-loadbalancer"
)
_TARGETS = _template(
    "AWS::ElasticLoadBalancingV2::TargetGroup", "elasticloadbalancingv2-targetgroup"
)
_SECURITY_GROUP = _template("AWS::EC2::SecurityGroup", "ec2-securitygroup")
_SECRET_PAGE = _template("AWS::SecretsManager::Secret", "secretsmanager-secret")
_TOPIC = _template("AWS::SNS::Topic", "sns-topic")
_RULE = _template("AWS::Events::Rule", "events-rule")
_KMS_KEY = _template("AWS::KMS::Key", "kms-key")

RETURNED = {
    ("AWS::ApiGatewayV2::Api", "Ref"): Returned("{}", _API),
    ("AWS::ApiGatewayV2::Integration", "Ref"): Returned(
        "{}", _template("AWS::ApiGatewayV2::Integration", "apigatewayv2-integration")
    ),
    ("AWS::EC2::SecurityGroup", "GroupId"): Returned("{}", _SECURITY_GROUP),
    ("AWS::EC2::VPC", "Ref"): Returned("{}", _template("AWS::EC2::VPC", "ec2-vpc")),
    ("AWS::ECS::Cluster", "Ref"): Returned("{}", _ECS_CLUSTER),
    ("AWS::ECS::Cluster", "Arn"): Returned(_arn("ecs:cluster/{}"), _ECS_CLUSTER),
    ("AWS::ECS::Service", "Ref"): Returned(_arn("ecs:service/*/{}"), _ECS_SERVICE),
    ("AWS::ECS::Service", "Name"): Returned("{}", _ECS_SERVICE),
    ("AWS::ElasticLoadBalancingV2::LoadBalancer", "Ref"): Returned(
        _arn("elasticloadbalancing:loadbalancer/net/{}/50dc6c495c0c9188"), _BALANCER
    ),
    ("AWS::ElasticLoadBalancingV2::LoadBalancer", "LoadBalancerFullName"): Returned(
        "net/{}/50dc6c495c0c9188", _BALANCER
    ),
    ("AWS::ElasticLoadBalancingV2::LoadBalancer", "LoadBalancerName"): Returned("{}", _BALANCER),
    ("AWS::ElasticLoadBalancingV2::TargetGroup", "Ref"): Returned(
        _arn("elasticloadbalancing:targetgroup/{}/73e2d6bc24d8a067"), _TARGETS
    ),
    ("AWS::ElasticLoadBalancingV2::TargetGroup", "TargetGroupFullName"): Returned(
        "targetgroup/{}/73e2d6bc24d8a067", _TARGETS
    ),
    ("AWS::ElasticLoadBalancingV2::TargetGroup", "TargetGroupName"): Returned("{}", _TARGETS),
    ("AWS::Events::Rule", "Arn"): Returned(_arn("events:rule/{}"), _RULE),
    ("AWS::IAM::Role", "Ref"): Returned("{}", _ROLE),
    ("AWS::IAM::Role", "Arn"): Returned("arn:aws:iam::111122223333:role/{}", _ROLE),
    ("AWS::KMS::Key", "Arn"): Returned(_arn("kms:key/{}"), _KMS_KEY),
    ("AWS::KMS::Key", "Ref"): Returned("{}", _KMS_KEY),
    ("AWS::Lambda::Alias", "Ref"): Returned(_arn("lambda:function:{}"), _LAMBDA_ALIAS),
    ("AWS::Lambda::Function", "Ref"): Returned("{}", _LAMBDA_FUNCTION),
    ("AWS::Lambda::Function", "Arn"): Returned(_arn("lambda:function:{}"), _LAMBDA_FUNCTION),
    ("AWS::Lambda::LayerVersion", "Ref"): Returned(
        _arn("lambda:layer:{}:1"), _template("AWS::Lambda::LayerVersion", "lambda-layerversion")
    ),
    ("AWS::Lambda::Version", "Ref"): Returned(_arn("lambda:function:{}"), _LAMBDA_VERSION),
    ("AWS::Logs::LogGroup", "Ref"): Returned("{}", _LOG_GROUP),
    ("AWS::Logs::LogGroup", "Arn"): Returned(_arn("logs:log-group:{}:*"), _LOG_GROUP),
    ("AWS::RDS::DBCluster", "Ref"): Returned("{}", _DB_CLUSTER),
    ("AWS::RDS::DBCluster", "DBClusterResourceId"): Returned("cluster-{}", _DB_CLUSTER),
    ("AWS::RDS::DBCluster", "Endpoint.Port"): Returned("{}", _DB_CLUSTER, "Port"),
    ("AWS::RDS::DBCluster", "MasterUserSecret.SecretArn"): Returned(
        _arn("secretsmanager:secret:rds!cluster-{}"), _DB_CLUSTER
    ),
    ("AWS::RDS::DBInstance", "Ref"): Returned("{}", _DB_INSTANCE),
    ("AWS::RDS::DBInstance", "DbiResourceId"): Returned("db-{}", _DB_INSTANCE),
    ("AWS::RDS::DBInstance", "Endpoint.Port"): Returned("{}", _DB_INSTANCE, "Port"),
    ("AWS::RDS::DBInstance", "MasterUserSecret.SecretArn"): Returned(
        _arn("secretsmanager:secret:rds!db-{}"), _DB_INSTANCE
    ),
    ("AWS::RDS::DBProxy", "Ref"): Returned("{}", _DB_PROXY),
    ("AWS::RDS::DBProxy", "DBProxyArn"): Returned(_arn("rds:db-proxy:prx-{}"), _DB_PROXY),
    ("AWS::SNS::Topic", "Ref"): Returned(_arn("sns:{}"), _TOPIC),
    ("AWS::SNS::Topic", "TopicArn"): Returned(_arn("sns:{}"), _TOPIC),
    ("AWS::SecretsManager::Secret", "Ref"): Returned(
        _arn("secretsmanager:secret:{}-AbCdEf"), _SECRET_PAGE
    ),
}
