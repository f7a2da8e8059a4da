"""Every action, metric and trust of every stage and combination is as AWS documents it."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import boto3
import pytest

from lambda_pg_cdk.tools.synth import COMBINATIONS
from tests.support.templates import STAGES, Stage
from tests.synth.walk import access, metrics, network, order, pages, width
from tests.synth.walk.deployed import Deployed

Templates = dict[str, dict[str, Any]]
Check = Callable[[Deployed], Iterator[str]]

NAMES = (*STAGES, *COMBINATIONS)

CHECKS: tuple[Check, ...] = (
    access.actions,
    access.trusts,
    access.grants,
    access.callers,
    metrics.metrics,
    metrics.cases,
    metrics.shown,
    network.groups,
    network.reach,
    network.endpoints,
    network.policies,
    order.proxies,
    width.widths,
)


def walks() -> list[Any]:
    """Ask for each check of each stage and combination."""
    return [
        pytest.param(check, name, id=f"{check.__name__}-{name}")
        for name in NAMES
        for check in CHECKS
    ]


@pytest.fixture(scope="module")
def deployed(apps: Mapping[str, Stage]) -> Callable[[str], Deployed]:
    """Read the templates of a stage or a combination, once for all checks."""
    return cache(lambda name: Deployed(apps[name].templates))


@pytest.mark.parametrize(("check", "name"), walks())
def test_templates_are_as_aws_documents_them(
    deployed: Callable[[str], Deployed], check: Check, name: str
) -> None:
    """The walk finds nothing in any stage or combination."""
    assert list(check(deployed(name))) == []


def test_the_walk_sees_every_kind_of_thing(apps: Mapping[str, Stage]) -> None:
    """Each row about a kind of resource has one to walk, so that no check passes for lack of it."""
    kinds = {each.kind for app in apps.values() for each in Deployed(app.templates).resources}
    rows: list[Any] = [*pages.TRUSTS, *pages.NEEDS, *pages.CALLERS]
    assert {row.resource for row in rows} <= kinds
    assert {"AWS::SNS::Topic", "AWS::EC2::VPCEndpoint", "AWS::CloudWatch::Alarm"} <= kinds
    assert {"AWS::RDS::DBProxyTargetGroup", "Custom::Login"} <= kinds
    assert "AWS::CloudWatch::Dashboard" in kinds


def test_every_row_about_width_is_needed(apps: Mapping[str, Stage]) -> None:
    """The list does not allow what no stage and no combination has any more."""
    found = {
        tuple(what)
        for app in apps.values()
        for _, *what in width.permissions(Deployed(app.templates))
    }
    assert [row for row in width.ROWS if not any(width.says(row, *each) for each in found)] == []


# The walk must not go blind: one template at a time is broken, and it has to say how.


def find(templates: Templates, stack: str, kind: str, part: str = "") -> dict[str, Any]:
    """Find one resource by its stack, its type, and a part of its name or of what is in it."""
    found = [
        each
        for name, each in templates[stack]["Resources"].items()
        if each["Type"] == kind and part in name + json.dumps(each["Properties"])
    ]
    properties: dict[str, Any] = found[0]["Properties"]
    return properties


def statement(templates: Templates, stack: str, action: str) -> dict[str, Any]:
    """Find the first statement of a stack's policies that has an action, and nothing else in it."""
    for each in templates[stack]["Resources"].values():
        for one in each["Properties"].get("PolicyDocument", {}).get("Statement", []):
            if action in one["Action"]:
                one["Action"] = action
                found: dict[str, Any] = one
                return found
    raise AssertionError(f"no statement has {action}")


def remove(templates: Templates, stack: str, kind: str, part: str) -> None:
    """Remove one resource."""
    resources = templates[stack]["Resources"]
    names = [name for name, each in resources.items() if each["Type"] == kind and part in name]
    del resources[names[0]]


def wrong_action(templates: Templates) -> None:
    """Misspell an action."""
    statement(templates, "Api", "secretsmanager:GetSecretValue")["Action"] = "secretsmanager:Read"


def action_on_a_resource(templates: Templates) -> None:
    """Restrict an action that knows no resource."""
    one = statement(templates, "Api", "xray:PutTraceSegments")
    one["Resource"] = "arn:aws:xray:eu-west-1:111122223333:group/x/y"


def action_on_another_resource(templates: Templates) -> None:
    """Name a parameter where a secret is meant."""
    one = statement(templates, "Api", "secretsmanager:GetSecretValue")
    one["Resource"] = "arn:aws:ssm:eu-west-1:111122223333:parameter/x"


def wrong_condition(templates: Templates) -> None:
    """Give an action another one's condition key."""
    one = statement(templates, "Pooler", "servicediscovery:DiscoverInstances")
    one["Condition"] = {"StringEquals": {"servicediscovery:NamespaceArn": "x"}}


def unknown_metric(templates: Templates) -> None:
    """Watch a metric of a REST API at an HTTP API."""
    alarm = find(templates, "Observability", "AWS::CloudWatch::Alarm", '"5xx"')
    alarm["Metrics"][0]["MetricStat"]["Metric"]["MetricName"] = "5XXError"


def dimension_missing(templates: Templates) -> None:
    """Watch a service by its name without its cluster."""
    alarm = find(templates, "Observability", "AWS::CloudWatch::Alarm", "CPUUtilization")
    del alarm["Dimensions"][0]


def dimension_of_another_value(templates: Templates) -> None:
    """Publish the load balancer's ARN where metrics want a part of it."""
    value = find(templates, "Pooler", "AWS::SSM::Parameter", "PublishedPoolerLoadBalancer")
    value["Value"] = {"Ref": value["Value"]["Fn::GetAtt"][0]}


def useless_statistic(templates: Templates) -> None:
    """Watch the average of zeros and ones."""
    alarm = find(templates, "Api", "AWS::CloudWatch::Alarm", "DeploymentErrors")
    alarm["Statistic"] = "Average"


def odd_period(templates: Templates) -> None:
    """Watch more often than there are data points."""
    find(templates, "Api", "AWS::CloudWatch::Alarm", "DeploymentErrors")["Period"] = 30


def period_that_adds_up(templates: Templates) -> None:
    """Add five minutes of a count of open connections up."""
    alarm = find(templates, "Observability", "AWS::CloudWatch::Alarm", "SessionPinned")
    alarm["Period"] = 300


def report_of_another_secret(templates: Templates) -> None:
    """Watch a secret that the function `rotate` is not asked to look at."""
    alarm = find(templates, "Observability", "AWS::CloudWatch::Alarm", "RotationOff")
    (dimension,) = alarm["Dimensions"]
    dimension["Value"] = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:other-AbCdEf"


def own_metric_unknown(templates: Templates) -> None:
    """Watch a metric that no supervisor writes."""
    alarm = find(templates, "Observability", "AWS::CloudWatch::Alarm", "MaxWait")
    alarm["MetricName"] = "LongestWait"


def own_metric_of_another_pooler(templates: Templates) -> None:
    """Scale on a pooler that no task says it is."""
    policy = find(templates, "Pooler", "AWS::ApplicationAutoScaling::ScalingPolicy", "Customized")
    tracked = policy["TargetTrackingScalingPolicyConfiguration"]["CustomizedMetricSpecification"]
    tracked["Dimensions"][0]["Value"] = "LambdaPg-other"


def empty_graph(templates: Templates) -> None:
    """Show a metric of a REST API beside an HTTP API's."""
    on_board(templates, '"IntegrationLatency"', '"CacheHitCount"')


def graph_of_nothing(templates: Templates) -> None:
    """Show the connections of an instance by its id."""
    on_board(templates, '"DBInstanceIdentifier"', '"DbiResourceId"')


def graph_that_adds_up(templates: Templates) -> None:
    """Show the proxy's connections over five minutes, of which each adds up another number."""
    on_board(templates, '"period":60,', "")


def on_board(templates: Templates, old: str, new: str) -> None:
    """Replace a text in what dashboards show."""
    board = find(templates, "Observability", "AWS::CloudWatch::Dashboard", old.replace('"', '\\"'))
    parts = board["DashboardBody"]["Fn::Join"][1]
    parts[:] = [each.replace(old, new) if isinstance(each, str) else each for each in parts]


def upper_case(templates: Templates) -> None:
    """Name the database in a way in which RDS does not keep it."""
    database = find(templates, "Database", "AWS::RDS::DBInstance")
    database["DBInstanceIdentifier"] = "LambdaPg"


def wrong_principal(templates: Templates) -> None:
    """Let EC2 assume the role of a function."""
    role = find(templates, "Api", "AWS::IAM::Role", "UsersServiceRole")
    role["AssumeRolePolicyDocument"]["Statement"][0]["Principal"]["Service"] = "ec2.amazonaws.com"


def role_for_something_new(templates: Templates) -> None:
    """Give a role to what takes none so far."""
    role = {"Fn::GetAtt": [name_of(templates, "Api", "UsersServiceRole"), "Arn"]}
    find(templates, "Api", "AWS::ApiGatewayV2::Integration")["CredentialsArn"] = role


def name_of(templates: Templates, stack: str, part: str) -> str:
    """Find a resource's logical name."""
    resources: dict[str, Any] = templates[stack]["Resources"]
    return next(name for name in resources if part in name)


def grant_missing(templates: Templates) -> None:
    """Leave one of four permissions to pull an image out."""
    one = find(templates, "Pooler", "AWS::IAM::Policy", "TaskExecutionRoleDefaultPolicy")
    one["PolicyDocument"]["Statement"][0]["Action"].remove("ecr:BatchGetImage")


def interfaces_missing(templates: Templates) -> None:
    """Take the policy for network interfaces from a function in the VPC."""
    role = find(templates, "Api", "AWS::IAM::Role", "UsersServiceRole")
    role["ManagedPolicyArns"].pop()


def managed_policy_unknown(templates: Templates) -> None:
    """Attach a policy of AWS's own that nobody has looked up."""
    role = find(templates, "Api", "AWS::IAM::Role", "UsersServiceRole")
    role["ManagedPolicyArns"].append("arn:aws:iam::aws:policy/AdministratorAccess")


def another_secret(templates: Templates) -> None:
    """Tell a function of a secret that it may not read; another stack publishes it."""
    value = find(templates, "Pooler", "AWS::SSM::Parameter", "PublishedPoolerSecretArn")
    function = find(templates, "Api", "AWS::Lambda::Function", '"users"')
    told = function["Environment"]["Variables"]
    told["LAMBDA_PG_SECRET_ARN"] = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:o-AbCdEf"
    assert value["Value"] != told["LAMBDA_PG_SECRET_ARN"]


def secret_for_something_new(templates: Templates) -> None:
    """Tell a function of a secret by a variable that no row knows."""
    function = find(templates, "Api", "AWS::Lambda::Function", '"users"')
    told = function["Environment"]["Variables"]
    told["OTHER_SECRET"] = told["LAMBDA_PG_SECRET_ARN"]


def rotation_without_a_step(templates: Templates) -> None:
    """Take the last step from the rotation function."""
    policy = find(templates, "Database", "AWS::IAM::Policy", "RotateServiceRoleDefaultPolicy")
    for one in policy["PolicyDocument"]["Statement"]:
        if "secretsmanager:UpdateSecretVersionStage" in one["Action"]:
            one["Action"].remove("secretsmanager:UpdateSecretVersionStage")


def nobody_may_rotate(templates: Templates) -> None:
    """Take Secrets Manager's permission from the rotation function."""
    remove(templates, "Database", "AWS::Lambda::Permission", "Rotate")


def rotation_of_another_secret(templates: Templates) -> None:
    """Let Secrets Manager invoke the rotation for another secret than the schedule's."""
    permission = find(templates, "Database", "AWS::Lambda::Permission", "Rotate")
    permission["SourceArn"] = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:o-AbCdEf"


def every_secret(templates: Templates) -> None:
    """Let a function read all secrets."""
    statement(templates, "Api", "secretsmanager:GetSecretValue")["Resource"] = "*"


def every_account(templates: Templates) -> None:
    """Let the certificate's function write a parameter of any account."""
    one = statement(templates, "Pooler", "ssm:PutParameter")
    one["Resource"] = "arn:aws:ssm:eu-west-1:*:parameter/lambda-pg/prod/pooler/ca"


def unused_action(templates: Templates) -> None:
    """Let the rotation replace the secret's key and content by the action that it does not use."""
    policy = find(templates, "Database", "AWS::IAM::Policy", "RotateServiceRoleDefaultPolicy")
    secret = next(
        one
        for one in policy["PolicyDocument"]["Statement"]
        if "secretsmanager:PutSecretValue" in one["Action"]
    )
    secret["Action"].append("secretsmanager:UpdateSecret")


def every_namespace(templates: Templates) -> None:
    """Let a task look for the instances of any namespace."""
    del statement(templates, "Pooler", "servicediscovery:DiscoverInstances")["Condition"]


def every_log_group(templates: Templates) -> None:
    """Let CDK's function for log groups set the retention of all."""
    statement(templates, "Database", "logs:PutRetentionPolicy")["Resource"] = "*"


def another_managed_policy(templates: Templates) -> None:
    """Let a function outside of the VPC manage interfaces."""
    role = find(templates, "Api", "AWS::IAM::Role", "MigrationProvider")
    role["ManagedPolicyArns"].append(
        "arn:aws:iam::aws:policy/service-role/AWSLambdaVPCAccessExecutionRole"
    )


def open_endpoint(templates: Templates) -> None:
    """Let anybody's principal through to anybody's secret."""
    document = endpoint_policy(templates, "secretsmanager")
    del document["Statement"][0]["Condition"]


def endpoint_for_another_account(templates: Templates) -> None:
    """Let our principals through to another account's registry."""
    document = endpoint_policy(templates, "ecr.api")
    condition = document["Statement"][0]["Condition"]
    condition["StringEqualsIfExists"]["aws:ResourceAccount"] = "444455556666"


def bucket_of_somebody(templates: Templates) -> None:
    """Let everybody read any bucket through the gateway."""
    document = endpoint_policy(templates, ".s3")
    document["Statement"][1]["Resource"] = "arn:aws:s3:::*/*"


def endpoint_policy(templates: Templates, service: str) -> Any:
    """Find the policy of a service's endpoint."""
    return find(templates, "Network", "AWS::EC2::VPCEndpoint", service)["PolicyDocument"]


def rule_may_not_call(templates: Templates) -> None:
    """Permit another rule than the one that calls."""
    permission = find(templates, "Pooler", "AWS::Lambda::Permission")
    permission["SourceArn"] = "arn:aws:events:eu-west-1:111122223333:rule/other"


def route_may_not_call(templates: Templates) -> None:
    """Permit another path than the route's."""
    permission = find(templates, "Api", "AWS::Lambda::Permission", "/*/*/health")
    permission["SourceArn"]["Fn::Join"][1][-1] = "/*/*/wealth"


def pool_may_not_call(templates: Templates) -> None:
    """Permit another user pool than the one that has the trigger."""
    permission = find(templates, "Api", "AWS::Lambda::Permission", "cognito-idp")
    permission["SourceArn"] = "arn:aws:cognito-idp:eu-west-1:111122223333:userpool/other"


def caller_that_nothing_has(templates: Templates) -> None:
    """Permit a service that has nothing to call for."""
    find(templates, "Pooler", "AWS::Lambda::Permission")["Principal"] = "s3.amazonaws.com"


def topic_for_nobody(templates: Templates) -> None:
    """Replace the topic's default policy by one that lets nobody in."""
    add_topic(templates, "s3.amazonaws.com")


def topic_with_aws_s_key(templates: Templates) -> None:
    """Encrypt the topic with the key that CloudWatch may not use."""
    add_topic(templates, "cloudwatch.amazonaws.com")
    topic = templates["Observability"]["Resources"]["Topic"]
    topic["Properties"]["KmsMasterKeyId"] = "alias/aws/sns"


def add_topic(templates: Templates, service: str) -> None:
    """Send an alarm to a topic that a service may publish to."""
    publish = {
        "Effect": "Allow",
        "Principal": {"Service": service},
        "Action": "sns:Publish",
        "Resource": {"Ref": "Topic"},
        "Condition": {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}},
    }
    policy = {"Topics": [{"Ref": "Topic"}], "PolicyDocument": {"Statement": [publish]}}
    templates["Observability"]["Resources"] |= {
        "Topic": {"Type": "AWS::SNS::Topic", "Properties": {}},
        "Policy": {"Type": "AWS::SNS::TopicPolicy", "Properties": policy},
    }
    alarm = find(templates, "Observability", "AWS::CloudWatch::Alarm", "MaxWait")
    alarm["AlarmActions"] = [{"Ref": "Topic"}]


def migration_not_invoked(templates: Templates) -> None:
    """Let the provider of the migration look at functions and invoke none."""
    text = json.dumps(templates["Api"])
    templates["Api"] = json.loads(text.replace("lambda:InvokeFunction", "lambda:GetFunction"))


def no_way_in(templates: Templates) -> None:
    """Take the server's half of a pair of rules away."""
    remove(templates, "Api", "AWS::EC2::SecurityGroupIngress", "Users")


def no_way_out(templates: Templates) -> None:
    """Take the client's half of a pair of rules away."""
    find(templates, "Api", "AWS::EC2::SecurityGroup", "Function Users")["SecurityGroupEgress"].pop()


def another_port(templates: Templates) -> None:
    """Tell functions another port than the one that their groups reach."""
    function = find(templates, "Api", "AWS::Lambda::Function", '"users"')
    function["Environment"]["Variables"]["PGPORT"] = "6543"


def endpoint_missing(templates: Templates) -> None:
    """Leave an endpoint out that functions without NAT call."""
    remove(templates, "Network", "AWS::EC2::VPCEndpoint", "Secrets")


def endpoint_unknown(templates: Templates) -> None:
    """Ask for an endpoint of the wrong half of Cloud Map."""
    endpoint = find(templates, "Network", "AWS::EC2::VPCEndpoint", "data-servicediscovery")
    endpoint["ServiceName"] = "com.amazonaws.eu-west-1.servicediscovery"


def proxy_before_its_login(templates: Templates) -> None:
    """Make the target group without waiting for what makes its login."""
    resources = templates["Pooler"]["Resources"]
    (group,) = [
        each for each in resources.values() if each["Type"] == "AWS::RDS::DBProxyTargetGroup"
    ]
    group["DependsOn"] = [name for name in group["DependsOn"] if "Login" not in name]


def login_of_another_secret(templates: Templates) -> None:
    """Let the login of another secret in than the proxy's."""
    login = find(templates, "Pooler", "Custom::Login")
    login["Event"]["SecretId"] = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:o-AbCdEf"


def login_of_another_server(templates: Templates) -> None:
    """Let the login in only where it was let in already."""
    find(templates, "Pooler", "Custom::Login")["Server"].pop()


def login_not_invoked(templates: Templates) -> None:
    """Let the provider of the login invoke nothing."""
    text = json.dumps(templates["Pooler"])
    templates["Pooler"] = json.loads(text.replace("lambda:InvokeFunction", "lambda:GetFunction"))


PROXY = "instance-rds-proxy-with-secret"

BROKEN: list[tuple[str, Check, Callable[[Templates], None], str]] = [
    ("prod", access.actions, wrong_action, "action secretsmanager:Read is not known"),
    ("prod", access.actions, action_on_a_resource, "takes no resource but '*'"),
    ("prod", access.actions, action_on_another_resource, ":secret:${SecretId}, not"),
    ("prod", access.actions, wrong_condition, "has no condition key servicediscovery:NamespaceArn"),
    ("prod", metrics.metrics, unknown_metric, "metric AWS/ApiGateway 5XXError is not known"),
    ("prod", metrics.metrics, dimension_missing, "is published by ClusterName, ServiceName"),
    ("prod", metrics.metrics, dimension_of_another_value, "LoadBalancer is arn:"),
    ("prod", metrics.metrics, useless_statistic, "its Average says little, use Sum"),
    ("prod", metrics.metrics, odd_period, "comes every 60 s, not 30"),
    ("instance-rds-proxy", metrics.metrics, period_that_adds_up, "is valid over 60 s only"),
    ("prod", metrics.metrics, own_metric_unknown, "writes no LongestWait"),
    ("prod", metrics.metrics, report_of_another_secret, "rotate writes it by Secret"),
    ("prod", metrics.metrics, own_metric_of_another_pooler, "its METRICS_POOLER alone"),
    ("prod", metrics.shown, empty_graph, "no page has AWS/ApiGateway CacheHitCount"),
    ("prod", metrics.shown, graph_of_nothing, "no page has AWS/RDS DatabaseConnections by DbiRes"),
    ("instance-rds-proxy", metrics.shown, graph_that_adds_up, "is valid over 60 s only"),
    ("prod", metrics.cases, upper_case, "which is stored as lambdapg:"),
    ("prod", access.trusts, wrong_principal, "which lambda.amazonaws.com may not assume"),
    ("prod", access.trusts, role_for_something_new, "CredentialsArn takes a role"),
    ("prod", access.grants, grant_missing, "needs ecr:BatchGetImage"),
    ("prod", access.grants, interfaces_missing, "needs ec2:CreateNetworkInterface"),
    ("prod", access.grants, managed_policy_unknown, "AdministratorAccess is not known"),
    ("prod", access.grants, another_secret, "needs secretsmanager:GetSecretValue on arn:"),
    (
        "prod",
        access.grants,
        secret_for_something_new,
        "the use of the secret in OTHER_SECRET is not known",
    ),
    (
        "prod",
        access.grants,
        rotation_without_a_step,
        "needs secretsmanager:UpdateSecretVersionStage",
    ),
    ("prod", access.callers, nobody_may_rotate, "secretsmanager.amazonaws.com may not call"),
    (
        "prod",
        access.callers,
        rotation_of_another_secret,
        "secretsmanager.amazonaws.com may not call",
    ),
    ("prod", width.widths, every_secret, "nothing says why it is that wide"),
    ("prod", width.widths, every_account, "on arn:aws:ssm:eu-west-1:*:"),
    ("prod", width.widths, unused_action, "rotate has Allow secretsmanager:UpdateSecret"),
    ("prod", width.widths, every_namespace, "DiscoverInstances on * given nothing"),
    ("prod", width.widths, every_log_group, "has Allow logs:PutRetentionPolicy on *"),
    ("prod", width.widths, another_managed_policy, "on service-role/AWSLambdaVPCAccess"),
    ("instance-pgbouncer-without-nat", network.policies, open_endpoint, "lets {} through"),
    (
        "instance-pgbouncer-without-nat",
        network.policies,
        endpoint_for_another_account,
        "444455556666",
    ),
    ("instance-pgbouncer-without-nat", network.policies, bucket_of_somebody, "lets {} through"),
    ("prod", access.callers, rule_may_not_call, "events.amazonaws.com may not call"),
    ("prod", access.callers, route_may_not_call, "/$default/ANY/health"),
    ("prod", access.callers, pool_may_not_call, "cognito-idp.amazonaws.com may not call"),
    (
        "prod",
        access.callers,
        caller_that_nothing_has,
        "nothing in the app has s3.amazonaws.com call",
    ),
    ("prod", access.callers, topic_for_nobody, "cloudwatch.amazonaws.com may not sns:Publish"),
    ("prod", access.callers, topic_with_aws_s_key, "may not use the key"),
    ("prod", access.callers, migration_not_invoked, "no role may lambda:InvokeFunction"),
    (PROXY, access.callers, login_not_invoked, "no role may lambda:InvokeFunction"),
    (PROXY, order.proxies, proxy_before_its_login, "nothing makes the login of arn:"),
    (PROXY, order.proxies, login_of_another_secret, "nothing makes the login of arn:"),
    (PROXY, order.proxies, login_of_another_server, "not made again for another"),
    ("prod", network.groups, no_way_in, "without a way in"),
    ("prod", network.groups, no_way_out, "which does not let it out"),
    ("prod", network.reach, another_port, "PGPORT is 6543"),
    (
        "instance-pgbouncer-without-nat",
        network.endpoints,
        endpoint_missing,
        "neither NAT nor secretsmanager",
    ),
    ("instance-pgbouncer-without-nat", network.endpoints, endpoint_unknown, "is not known"),
]


@pytest.mark.parametrize(
    ("name", "check", "damage", "words"),
    [pytest.param(*each, id=each[2].__name__) for each in BROKEN],
)
def test_the_walk_finds_what_is_broken(
    apps: Mapping[str, Stage],
    name: str,
    check: Check,
    damage: Callable[[Templates], None],
    words: str,
) -> None:
    """Each kind of fault is found in a template that has nothing else wrong."""
    templates = copy.deepcopy(dict(apps[name].templates))
    assert list(check(Deployed(templates))) == []
    damage(templates)
    found = list(check(Deployed(templates)))
    assert any(words in each for each in found), found


def test_a_topic_that_lets_alarms_in_is_accepted(apps: Mapping[str, Stage]) -> None:
    """The control of the two above: a policy for CloudWatch in this account is what AWS shows."""
    templates = copy.deepcopy(dict(apps["prod"].templates))
    add_topic(templates, "cloudwatch.amazonaws.com")
    assert list(access.callers(Deployed(templates))) == []
    assert list(access.actions(Deployed(templates))) == []


# The tables themselves, against two copies of AWS's own models.


@cache
def service_reference() -> Any:
    """Read cfn-lint's copy of the Service Authorization Reference: several MB of JSON."""
    text = files("cfnlint.data.AdditionalSpecs").joinpath("Policies.json").read_text()
    return json.loads(text)


@cache
def operations(service: str) -> frozenset[str]:
    """Name the operations of a service's model in the SDK."""
    model = boto3.session.Session()._session.get_service_model(service)
    return frozenset(model.operation_names)


@pytest.mark.parametrize("name", pages.ACTIONS)
def test_actions_are_those_of_the_service_reference(name: str) -> None:
    """cfn-lint's copy of the Service Authorization Reference has the action and its resources."""
    prefix, _, action = name.partition(":")
    service = service_reference()[prefix]
    types = service["Actions"][action.lower()].get("Resources", [])
    arns = [arn for each in types for arn in service["Resources"][each.lower()]["ARNFormats"]]
    row = pages.ACTIONS[name]
    assert len(row.resources) == len(types)
    for arn, wanted in zip(arns, row.resources, strict=True):
        assert wanted.startswith(arn.removesuffix(".*")), (arn, row.page)


@pytest.mark.parametrize("name", sorted(set(pages.ACTIONS) - {"rds-db:connect"}))
def test_actions_are_operations(name: str) -> None:
    """The SDK's own model has an operation of that name; Lambda's is called Invoke."""
    prefix, _, action = name.partition(":")
    assert {"InvokeFunction": "Invoke"}.get(action, action) in operations(prefix)
