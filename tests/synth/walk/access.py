"""Who may do what: actions, the roles that allow them, and the services that call something."""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from tests.synth.walk import pages
from tests.synth.walk.deployed import (
    Deployed,
    Resource,
    as_list,
    labels,
    matches,
    statements,
)
from tests.synth.walk.pages import LOOK_IT_UP


def actions(app: Deployed) -> Iterator[str]:
    """Check each action of each policy: that it exists, its resources and its condition keys."""
    for resource in app.resources:
        if resource.kind == "AWS::EC2::VPCEndpoint":  # network.policies
            continue
        for _, statement in statements(resource.properties):
            if "NotAction" in statement or "NotResource" in statement:
                yield f"{resource}: a statement names what it does not mean; name what it does"
                continue
            for action in as_list(statement["Action"]):
                yield from _action(app, resource, statement, action)


def _action(
    app: Deployed, resource: Resource, statement: Mapping[str, Any], action: str
) -> Iterator[str]:
    row = _row(action)
    if row is None:
        yield f"{resource}: action {action} is not known: {LOOK_IT_UP}"
        return
    for keys in statement.get("Condition", {}).values():
        for key in keys:
            if not _is_key(key, row):
                yield f"{resource}: {action} has no condition key {key}: {row.page}"
    if "Resource" not in statement:  # a role's trust: the resource is the role
        return
    named = [app.text(resource.stack, each) for each in as_list(statement["Resource"])]
    if named == ["*"]:
        return
    if not row.resources:
        yield f"{resource}: {action} takes no resource but '*', not {named}: {row.page}"
    for wanted in row.resources:
        if not any(matches(wanted, each) for each in named):
            yield f"{resource}: {action} needs a resource {wanted}, not {named}: {row.page}"


def _row(action: str) -> pages.Action | None:
    """Find an action's row; names of actions are not case-sensitive."""
    rows = {name.lower(): row for name, row in pages.ACTIONS.items()}
    return rows.get(action.lower())


def _is_key(key: str, row: pages.Action) -> bool:
    known = (*row.keys, *pages.GLOBAL_KEYS)
    return any(matches(each.lower(), key.lower()) for each in known)


def trusts(app: Deployed) -> Iterator[str]:
    """Check who assumes each role, and that it allows what its user is documented to need."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for resource in app.resources:
        for path, text in app.mentions(resource):
            roles = [each for each in labels(text) if each.startswith("{IAM.Role ")]
            if not roles or (resource.kind, path) in _ATTACHED or ".Condition." in path:
                continue
            row = _trust(resource, path)
            if row is None:
                yield f"{resource}: {path} takes a role, and for whom is not known: {LOOK_IT_UP}"
                continue
            for role in roles:
                wanted[role].add(f"{row.service}.amazonaws.com")
                if f"{row.service}.amazonaws.com" not in _assumed_by(app.by_label[role]):
                    yield (
                        f"{resource}: {path} is {app.by_label[role]}, which"
                        f" {row.service}.amazonaws.com may not assume: {row.page}"
                    )
    for each in app.of_kind("AWS::IAM::Role"):
        for service in sorted(_assumed_by(each) - wanted[each.label]):
            yield f"{each}: {service} may assume it, and nothing in the app has it do so"


_ATTACHED = {("AWS::IAM::Policy", "Roles.*"), ("AWS::IAM::ManagedPolicy", "Roles.*")}


def _trust(resource: Resource, path: str) -> pages.Trust | None:
    rows = {(each.resource, each.path): each for each in pages.TRUSTS}
    return rows.get((resource.kind, path))


def _assumed_by(role: Resource) -> set[str]:
    """Name the services that a role's trust policy lets in."""
    return {
        service
        for _, statement in statements(role.properties["AssumeRolePolicyDocument"])
        if statement["Effect"] == "Allow"
        for service in as_list(statement["Principal"].get("Service", []))
    }


def grants(app: Deployed) -> Iterator[str]:
    """Check that each role allows what its user needs, by documentation or by our own code."""
    for row in pages.NEEDS:
        for resource in app.of_kind(row.resource):
            if not _applies(app, resource, row.when):
                continue
            for role in roles_at(app, resource, row.role):
                things = app.texts(resource, row.on) if row.on else ["*"]
                for action, thing in ((a, t) for a in row.actions for t in things):
                    if not _allows(app, role, action, thing):
                        yield _missing(resource, role, action, thing, row.page)
    yield from _variables(app)
    yield from _rotations(app)
    for role in app.of_kind("AWS::IAM::Role"):
        for policy in app.texts(role, "ManagedPolicyArns.*"):
            if _managed(policy) is None:
                yield f"{role}: {policy} is not known: {LOOK_IT_UP}"


def _missing(resource: Resource, role: Resource, action: str, thing: str, page: object) -> str:
    on = "" if thing == "*" else f" on {thing}"
    return f"{resource}: needs {action}{on}, which its role {role.name} does not allow: {page}"


def _applies(app: Deployed, resource: Resource, when: str) -> bool:
    path, _, value = when.partition("=")
    if not value:
        return path in resource.properties
    return any(matches(value, text) for text in app.texts(resource, path))


def roles_at(app: Deployed, resource: Resource, path: str) -> list[Resource]:
    texts = app.texts(resource, path.removesuffix(".*"))
    return [app.by_label[each] for text in texts for each in labels(text)]


def _allows(app: Deployed, role: Resource, action: str, thing: str) -> bool:
    """Look for a grant of an action on something; '*' is anything."""
    return any(
        fnmatchcase(action.lower(), allowed.lower()) and _covers(resource, thing)
        for allowed, resource in granted(app, role)
    )


def _covers(allowed: str, thing: str) -> bool:
    """Compare what is granted with what is needed, either of which may be only a part of an ARN."""
    named = labels(thing)
    if "*" in (allowed, thing) or allowed == thing:
        return True
    if thing.startswith("*"):
        return allowed.endswith(thing[1:])
    return fnmatchcase(thing, allowed) or (named == [thing] and thing in allowed)


def granted(app: Deployed, role: Resource) -> Iterator[tuple[str, str]]:
    """Yield each action that a role allows, with the resource."""
    documents = [
        (role.stack, statement) for _, statement in statements(role.properties.get("Policies", []))
    ] + [
        (policy.stack, statement)
        for kind in ("AWS::IAM::Policy", "AWS::IAM::ManagedPolicy")
        for policy in app.of_kind(kind)
        if role.label in app.texts(policy, "Roles.*")
        for _, statement in statements(policy.properties["PolicyDocument"])
    ]
    for stack, statement in documents:
        if statement["Effect"] != "Allow":
            continue
        for action in as_list(statement["Action"]):
            for resource in as_list(statement["Resource"]):
                yield action, app.text(stack, resource)
    for policy in app.texts(role, "ManagedPolicyArns.*"):
        known = _managed(policy)
        for action in known.actions if known else ():
            yield action, "*"


def _managed(arn: str) -> pages.ManagedPolicy | None:
    return pages.MANAGED_POLICIES.get(arn.partition(":policy/")[2])


def _variables(app: Deployed) -> Iterator[str]:
    """Check that code may do what its environment tells it to."""
    for resource, role_path, name, value in environments(app):
        row = pages.VARIABLES.get((resource.kind, name))
        if row is None:
            if matches("arn:*:secretsmanager:*", value):
                yield f"{resource}: the use of the secret in {name} is not known: {LOOK_IT_UP}"
            continue
        things = [row.arn.replace("${Value}", part) for part in value.split(",")]
        for role in roles_at(app, resource, role_path):
            for action, thing in itertools.product(row.actions, things):
                if not _allows(app, role, action, thing):
                    yield _missing(resource, role, action, thing, row.page)


def environments(app: Deployed) -> Iterator[tuple[Resource, str, str, str]]:
    for function in app.of_kind("AWS::Lambda::Function"):
        for name, value in function.properties.get("Environment", {}).get("Variables", {}).items():
            yield function, "Role", name, app.text(function.stack, value)
    for task in app.of_kind("AWS::ECS::TaskDefinition"):
        for container in task.properties["ContainerDefinitions"]:
            for each in container.get("Environment", []):
                yield task, "TaskRoleArn", each["Name"], app.text(task.stack, each["Value"])


def _rotations(app: Deployed) -> Iterator[str]:
    """Check that a rotation function may do all four steps on its secret."""
    for schedule in app.of_kind("AWS::SecretsManager::RotationSchedule"):
        (secret,) = app.texts(schedule, "SecretId")
        for function in _called(app, schedule, "RotationLambdaARN"):
            for role in roles_at(app, function, "Role"):
                needs = [(action, secret) for action in pages.ROTATES]
                for action, thing in (*needs, ("secretsmanager:GetRandomPassword", "*")):
                    if not _allows(app, role, action, thing):
                        yield _missing(function, role, action, thing, pages.ROTATION)


def _called(app: Deployed, resource: Resource, path: str) -> list[Resource]:
    return [app.by_label[each] for text in app.texts(resource, path) for each in labels(text)]


def callers(app: Deployed) -> Iterator[str]:
    """Check that each service that calls a function or a topic may, and that no other one may."""
    used: set[tuple[str, str]] = set()
    for row in pages.CALLERS:
        for resource in app.of_kind(row.resource):
            for target in _called(app, resource, row.path):
                used.add((f"{row.service}.amazonaws.com", target.label))
                yield from _call(app, row, resource, target)
    for permission in app.of_kind("AWS::Lambda::Permission"):
        principal = app.text(permission.stack, permission.properties["Principal"])
        for target in _called(app, permission, "FunctionName"):
            if (principal, target.label) not in used:
                yield f"{permission}: nothing in the app has {principal} call {target.name}"
    yield from _custom_resources(app)


def _call(app: Deployed, row: pages.Caller, resource: Resource, target: Resource) -> Iterator[str]:
    service = f"{row.service}.amazonaws.com"
    if target.kind == "AWS::SNS::Topic":
        if not _may_publish(app, service, row.action, target):
            yield f"{resource}: {service} may not {row.action} to {target}: {row.page}"
        if "KmsMasterKeyId" in target.properties and not _may_encrypt(app, service, target):
            yield f"{resource}: {service} may not use the key of {target}: {pages.TOPIC_KEY}"
        return
    sources = _sources(app, resource)
    allowed = [
        each
        for each in app.of_kind("AWS::Lambda::Permission")
        if app.text(each.stack, each.properties["Principal"]) == service
        and each.properties["Action"] == row.action
        and target.label in labels(app.text(each.stack, each.properties["FunctionName"]))
    ]
    for source in sources:
        if not any(_admits(app, each, source) for each in allowed):
            yield f"{resource}: {service} may not call {target} for {source}: {row.page}"


def _sources(app: Deployed, resource: Resource) -> list[str]:
    """Say as what a service calls: for a route of an API, a rule, a secret, a user pool."""
    if resource.kind == "AWS::SecretsManager::RotationSchedule":
        return app.texts(resource, "SecretId")
    if resource.kind in {"AWS::Events::Rule", "AWS::Cognito::UserPool"}:
        return [app.returned(resource, "Arn")]
    if resource.kind != "AWS::ApiGatewayV2::Integration":
        return ["*"]
    (api,) = app.texts(resource, "ApiId")
    routes = [
        app.text(route.stack, route.properties["RouteKey"]).partition(" ")
        for route in app.of_kind("AWS::ApiGatewayV2::Route")
        if resource.label in app.text(route.stack, route.properties["Target"])
    ]
    return [f":{api}/$default/{method}{path}" for method, _, path in routes]


def _admits(app: Deployed, permission: Resource, source: str) -> bool:
    """Compare a permission's condition with what calls; an API's source begins with its id."""
    account = app.texts(permission, "SourceAccount")
    own = all(each in ("111122223333", "000000000000") for each in account)
    arns = app.texts(permission, "SourceArn")
    return own and all(
        source == "*" or fnmatchcase(source, arn) or fnmatchcase(source, f":{arn.split(':')[-1]}")
        for arn in arns
    )


def _may_publish(app: Deployed, service: str, action: str, topic: Resource) -> bool:
    """Say whether a topic lets a service publish. Without a policy, its account's alarms may."""
    policies = [
        each
        for each in app.of_kind("AWS::SNS::TopicPolicy")
        if topic.label in [label for text in app.texts(each, "Topics.*") for label in labels(text)]
    ]
    return not policies or any(
        _lets_in(statement, service, action)
        for policy in policies
        for _, statement in statements(policy.properties["PolicyDocument"])
    )


def _may_encrypt(app: Deployed, service: str, topic: Resource) -> bool:
    """Say whether a topic's key is one that a service may use; AWS's own key is none."""
    keys = _called(app, topic, "KmsMasterKeyId")
    return bool(keys) and all(
        any(
            _lets_in(statement, service, action)
            for _, statement in statements(key.properties["KeyPolicy"])
        )
        for key in keys
        for action in ("kms:Decrypt", "kms:GenerateDataKey")
    )


def _lets_in(statement: Mapping[str, Any], service: str, action: str) -> bool:
    principal = statement.get("Principal", {})
    services = as_list(principal.get("Service", [])) if isinstance(principal, Mapping) else []
    return (
        statement["Effect"] == "Allow"
        and service in services
        and any(fnmatchcase(action.lower(), each.lower()) for each in as_list(statement["Action"]))
    )


def _custom_resources(app: Deployed) -> Iterator[str]:
    """Check that a function which a custom resource names is one that a function may invoke.

    CloudFormation calls the provider as the one who deploys; the provider calls by its role.
    """
    for resource in app.resources:
        if not resource.kind.startswith("Custom::"):
            continue
        for path, text in app.mentions(resource):
            if path == "ServiceToken" or not matches("arn:*:lambda:*:function:*", text):
                continue
            if not any(_may_invoke(app, role, text) for role in app.of_kind("AWS::IAM::Role")):
                page = pages.CUSTOM_RESOURCE
                yield f"{resource}: no role may lambda:InvokeFunction on {path} = {text}: {page}"


def _may_invoke(app: Deployed, role: Resource, function: str) -> bool:
    """Say whether a role may invoke; a version is its function's, with ':' and a number."""
    named = [
        text
        for label in labels(function)
        for text in (function, *app.texts(app.by_label[label], "FunctionName"))
    ]
    whole = [f"arn:aws:lambda:eu-west-1:111122223333:function:{each}:1" for each in named]
    return any(_allows(app, role, "lambda:InvokeFunction", each) for each in (*named, *whole))
