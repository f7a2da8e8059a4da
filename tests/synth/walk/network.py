"""Who reaches whom: rules of security groups in pairs, and endpoints where there is no NAT."""

from collections.abc import Iterator, Mapping
from typing import Any

from tests.synth.walk import pages
from tests.synth.walk.access import environments, granted, roles_at
from tests.synth.walk.deployed import Deployed, Resource, as_list, matches, statements
from tests.synth.walk.pages import GROUP_RULES, LOOK_IT_UP


def groups(app: Deployed) -> Iterator[str]:
    """Check that rules between security groups come in pairs, whichever stack has which half."""
    ins, outs = _rules(app, "Ingress"), _rules(app, "Egress")
    for (server, client, port), where in ins.items():
        if not _is_group(client):
            continue
        if (client, server, port) not in outs and not _open(outs, client, port):
            yield f"{where}: lets {client} in on {port}, which does not let it out: {GROUP_RULES}"
    for (client, server, port), where in outs.items():
        if _is_group(server) and (server, client, port) not in ins:
            yield f"{where}: lets {client} out to {server}:{port}, without a way in: {GROUP_RULES}"


def _is_group(peer: str) -> bool:
    return peer.startswith(("{EC2.SecurityGroup ", "sg-"))


def _open(outs: Mapping[tuple[str, str, str], Resource], client: str, port: str) -> bool:
    return any((client, "0.0.0.0/0", each) in outs for each in (port, "0-65535"))


def _rules(app: Deployed, way: str) -> dict[tuple[str, str, str], Resource]:
    """List the rules of one direction by group, peer and ports, with where they are."""
    peer = "SourceSecurityGroupId" if way == "Ingress" else "DestinationSecurityGroupId"
    found = {}
    for group in app.of_kind("AWS::EC2::SecurityGroup"):
        for rule in group.properties.get(f"SecurityGroup{way}", []):
            found[app.returned(group, "GroupId"), *_rule(app, group, rule, peer)] = group
    for resource in app.of_kind(f"AWS::EC2::SecurityGroup{way}"):
        (owner,) = app.texts(resource, "GroupId")
        found[owner, *_rule(app, resource, resource.properties, peer)] = resource
    return found


def _rule(app: Deployed, resource: Resource, rule: Mapping[str, Any], peer: str) -> tuple[str, str]:
    other = app.text(resource.stack, rule.get(peer) or rule.get("CidrIp"))
    first, last = (app.text(resource.stack, rule.get(each)) for each in ("FromPort", "ToPort"))
    return other, first if first == last else f"{first}-{last}"


def reach(app: Deployed) -> Iterator[str]:
    """Check that what knows a server's port is in a group that reaches a group on that port."""
    outs = _rules(app, "Egress")
    for resource, _, name, port in environments(app):
        if name not in ("PGPORT", "DATABASE_PORT"):
            continue
        for group in _groups_of(app, resource):
            if not any(owner == group and _is_port(port, each) for owner, _, each in outs):
                yield f"{resource}: {name} is {port}, {group} does not reach it: {GROUP_RULES}"
    for proxy in app.of_kind("AWS::RDS::DBProxy"):
        for group in app.texts(proxy, "VpcSecurityGroupIds.*"):
            if not any(owner == group and _is_group(other) for owner, other, _ in outs):
                yield f"{proxy}: its group {group} reaches no database: {GROUP_RULES}"


def _groups_of(app: Deployed, resource: Resource) -> list[str]:
    """Name the groups of a function, or of the services that run a task."""
    if resource.kind == "AWS::Lambda::Function":
        return app.texts(resource, "VpcConfig.SecurityGroupIds.*")
    path = "NetworkConfiguration.AwsvpcConfiguration.SecurityGroups.*"
    return [
        group for service in app.of_kind("AWS::ECS::Service") for group in app.texts(service, path)
    ]


def _is_port(port: str, rule: str) -> bool:
    first, _, last = rule.partition("-")
    return port == rule or (bool(last) and int(first) <= int(port) <= int(last))


def endpoints(app: Deployed) -> Iterator[str]:
    """Check the endpoints of a VPC, and that without NAT each API in use has its own."""
    found = set()
    for endpoint in app.of_kind("AWS::EC2::VPCEndpoint"):
        (service,) = app.texts(endpoint, "ServiceName")
        name = service.split(".", 3)[-1]
        row = pages.ENDPOINTS.get(name)
        if row is None:
            yield f"{endpoint}: service {service} is not known: {LOOK_IT_UP}"
            continue
        found.add(name)
        kind = endpoint.properties["VpcEndpointType"]
        if kind != row.kind or (kind == "Interface") != bool(
            endpoint.properties.get("PrivateDnsEnabled")
        ):
            yield f"{endpoint}: has to be {row.kind}, by private DNS if it has any: {row.page}"
    if app.of_kind("AWS::EC2::VPC") and not app.of_kind("AWS::EC2::NatGateway"):
        for role, prefix in sorted(_called_from_inside(app)):
            for name, row in pages.ENDPOINTS.items():
                if prefix in row.prefixes and name not in found:
                    yield f"{role}: calls {prefix}, its VPC has neither NAT nor {name}: {row.page}"


def policies(app: Deployed) -> Iterator[str]:
    """Check that each endpoint lets only this account through, and to what is this account's."""
    for endpoint in app.of_kind("AWS::EC2::VPCEndpoint"):
        (service,) = app.texts(endpoint, "ServiceName")
        row = pages.ENDPOINTS[service.split(".", 3)[-1]]
        document = endpoint.properties.get("PolicyDocument")
        if bool(document) != bool(row.keys):
            yield f"{endpoint}: has a policy or must have none: {pages.ENDPOINT_POLICIES}"
        for _, statement in statements(document):
            named = [app.text(endpoint.stack, each) for each in as_list(statement["Resource"])]
            held = {
                key: app.text(endpoint.stack, value)
                for keys in statement.get("Condition", {}).values()
                for key, value in keys.items()
            }
            of_aws = statement["Action"] == "s3:GetObject" and all(
                any(matches(bucket, each) for bucket in row.buckets) for each in named
            )
            own = set(held) == set(row.keys) and set(held.values()) <= _ACCOUNTS
            if not of_aws and not own:
                yield f"{endpoint}: lets {held} through to {named}: {pages.ENDPOINT_POLICIES}"


_ACCOUNTS = {"111122223333", "000000000000"}


def _called_from_inside(app: Deployed) -> set[tuple[str, str]]:
    """List which APIs functions and tasks in the VPC call; Lambda itself sends logs and traces."""
    inside = [
        (each, "Role", {"logs", "xray"})
        for each in app.of_kind("AWS::Lambda::Function")
        if "VpcConfig" in each.properties
    ]
    for task in app.of_kind("AWS::ECS::TaskDefinition"):
        inside += [(task, "TaskRoleArn", set()), (task, "ExecutionRoleArn", set())]
    for profile in app.of_kind("AWS::IAM::InstanceProfile"):
        inside.append((profile, "Roles.*", set()))
    return {
        (str(role), action.partition(":")[0])
        for resource, path, sent in inside
        for role in roles_at(app, resource, path)
        for action, _ in granted(app, role)
        if action.partition(":")[0] not in sent
    }
