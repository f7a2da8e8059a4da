"""The control plane: its hooks, and what is added to MiniStack."""

import io
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.control_plane.stacks import HELD_SECONDS
from lambda_pg_cdk.local.deployment.deployed import CustomDomain, Throttle
from lambda_pg_cdk.local.deployment.inventory import Inventory
from lambda_pg_cdk.local.install import installed
from lambda_pg_cdk.local.pooler_service.cloud_map import CloudMap
from lambda_pg_cdk.local.state import sdk_variables
from tests.support.control_plane import (
    KEY,
    POSTGRES,
    REGION,
    ControlPlane,
    Invocation,
    attribute,
    function,
    output,
)

BREAKAGES = {
    "_execute_function_warm": (
        "import ministack.services.lambda_svc as m; del m._execute_function_warm"
    ),
    "AWS::RDS::DBInstance": (
        "import ministack.services.cloudformation.provisioners as m;"
        "del m._RESOURCE_HANDLERS['AWS::RDS::DBInstance']['update']"
    ),
    "_instances": "import ministack.services.rds as m; del m._instances",
    "_put_secret_value": (
        "import ministack.services.secretsmanager as m; m._put_secret_value = lambda: None"
    ),
    "AWS::ECS::Service": (
        "import ministack.services.cloudformation.provisioners as m;"
        "del m._RESOURCE_HANDLERS['AWS::ECS::Service']['update']"
    ),
    "_lambda_create": (
        "import ministack.services.cloudformation.provisioners as m;"
        "m._lambda_create = lambda props: None"
    ),
}


CHECKED_BY_COPIES = """
import json, os, sys, tempfile
from lambda_pg_cdk.local.control_plane import hooks

hooks.check()
found = {}
for hook, breakage in json.loads(sys.argv[1]).items():
    with tempfile.TemporaryFile("w+") as said:
        copy = os.fork()
        if copy == 0:
            os.dup2(said.fileno(), 2)
            exec(breakage)
            hooks.check()
            sys.exit()
        code = os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])
        said.seek(0)
        found[hook] = (code, said.read())
print(json.dumps(found))
"""
"""Checks MiniStack as it is, then each breakage in a copy of the process: the import is slow."""


def start(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in the control plane's interpreter."""
    return subprocess.run(
        [str(installed.control_plane_python()), "-c", code, *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture(scope="module")
def checked() -> subprocess.CompletedProcess[str]:
    """What the check says of MiniStack as it is, and of each breakage."""
    return start(CHECKED_BY_COPIES, json.dumps(BREAKAGES))


def test_the_pinned_version_has_every_hook(checked: subprocess.CompletedProcess[str]) -> None:
    """The check passes with what is installed."""
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("hook", BREAKAGES)
def test_a_moved_hook_is_named_with_the_version(
    checked: subprocess.CompletedProcess[str], hook: str
) -> None:
    """The start fails at once, and says what to look at."""
    code, said = json.loads(checked.stdout)[hook]
    assert code == 1
    assert hook in said
    assert "1.5.33" in said


def test_it_serves_loopback_only() -> None:
    """Without the address it does not start, rather than listen everywhere."""
    program = "from lambda_pg_cdk.local.control_plane.__main__ import main; main()"
    done = start(program, BIND_HOST="0.0.0.0")  # noqa: S104 - what is refused
    assert done.returncode == 1
    assert "loopback" in done.stderr


# Stacks


def test_a_question_for_a_stack_is_answered_when_it_is_done(plane: ControlPlane) -> None:
    """Or after 4 s, as it is then. A list of stacks does not wait, nor does a function."""
    begun, go_on = threading.Event(), threading.Event()

    def make(invocation: Invocation) -> None:
        begun.set()
        assert go_on.wait(30)
        event = invocation.event
        answer = {name: event[name] for name in ("StackId", "RequestId", "LogicalResourceId")}
        answer |= {"Status": "SUCCESS", "PhysicalResourceId": "made"}
        body = json.dumps(answer).encode()
        request = urllib.request.Request(event["ResponseURL"], body, method="PUT")  # noqa: S310 - the plane's own
        urllib.request.urlopen(request).close()  # noqa: S310 - the same

    plane.daemon.function = make
    custom = {
        "Type": "Custom::Late",
        "Properties": {"ServiceToken": attribute("Function", "Arn")},
    }
    client = plane.client("cloudformation")
    body = json.dumps({"Resources": {"Function": function(), "Late": custom}})
    client.create_stack(StackName="late", TemplateBody=body)
    assert begun.wait(30)
    listed = client.describe_stacks()["Stacks"]
    assert [stack["StackStatus"] for stack in listed] == ["CREATE_IN_PROGRESS"]
    assert status(client, "late") == "CREATE_IN_PROGRESS"
    function_client = plane.client("cloudformation", user_agent="exec-env/AWS_Lambda_python3.13")
    began = time.monotonic()
    assert status(function_client, "late") == "CREATE_IN_PROGRESS"
    assert time.monotonic() - began < HELD_SECONDS
    with ThreadPoolExecutor(1) as executor:
        asked = executor.submit(status, client, "late")
        time.sleep(0.3)
        assert not asked.done()
        go_on.set()
        assert asked.result() == "CREATE_COMPLETE"


def status(client: Any, name: str) -> str:
    """Ask for one stack."""
    return str(client.describe_stacks(StackName=name)["Stacks"][0]["StackStatus"])


def test_a_change_of_outputs_alone_is_deployed(plane: ControlPlane) -> None:
    """An export that the next stack imports is there, though no resource of this one changes."""
    client = plane.client("cloudformation")
    queue = {"Queue": {"Type": "AWS::SQS::Queue"}}

    def change(name: str, kind: str, outputs: dict[str, Any]) -> str:
        body = json.dumps({"Resources": queue, "Outputs": outputs})
        asked = {"StackName": "outputs", "ChangeSetName": name}
        client.create_change_set(**asked, ChangeSetType=kind, TemplateBody=body)
        made = client.describe_change_set(**asked)
        if made["Status"] == "CREATE_COMPLETE":
            client.execute_change_set(**asked)
            status(client, "outputs")
        return str(made["Status"])

    exported = {"Name": {"Value": {"Ref": "Queue"}, "Export": {"Name": "outputs:queue"}}}
    assert change("first", "CREATE", {}) == "CREATE_COMPLETE"
    assert change("second", "UPDATE", exported) == "CREATE_COMPLETE"
    assert "outputs:queue" in [each["Name"] for each in client.list_exports()["Exports"]]
    assert change("third", "UPDATE", exported) == "FAILED"


# Databases

MANAGED = {"MasterUsername": "owner", "ManageMasterUserPassword": True}
ENGINE = {"Engine": "postgres", "DBInstanceClass": "db.t4g.micro", "AllocatedStorage": "20"}


def read_secret(plane: ControlPlane, arn: str) -> dict[str, str]:
    """Return the current value of a secret."""
    text = plane.client("secretsmanager").get_secret_value(SecretId=arn)["SecretString"]
    return dict(json.loads(text))


def secret_names(plane: ControlPlane) -> list[str]:
    """Return the names of all secrets."""
    return [each["Name"] for each in plane.client("secretsmanager").list_secrets()["SecretList"]]


def instance(**properties: Any) -> dict[str, Any]:
    """Return the resource of an instance."""
    return {"Type": "AWS::RDS::DBInstance", "Properties": {**ENGINE, **properties}}


def test_a_managed_master_password_is_in_a_secret_of_rds(plane: ControlPlane) -> None:
    """The instance tells the secret's ARN, and the local PostgreSQL gets what is in it."""
    outputs = {
        "Secret": output(attribute("Db", "MasterUserSecret.SecretArn")),
        "Host": output(attribute("Db", "Endpoint.Address")),
    }
    resources = {"Db": instance(DBName="app", **MANAGED)}
    told = plane.deploy("db", resources, Outputs=outputs)
    secret = read_secret(plane, told["Secret"])
    assert (secret["username"], len(secret["password"]) >= 20) == ("owner", True)
    assert told["Host"] == POSTGRES["host"]
    order = {"user": "owner", "password": secret["password"], "name": "app"}
    assert plane.daemon.databases == [order]

    resources["Db"]["Properties"]["AllocatedStorage"] = "30"
    assert plane.deploy("db", resources, Outputs=outputs) == told
    assert read_secret(plane, told["Secret"]) == secret
    assert plane.daemon.databases == [order, order]

    plane.delete("db")
    assert secret_names(plane) == []


def test_a_cluster_is_the_local_postgresql_and_its_members_have_no_user(
    plane: ControlPlane,
) -> None:
    """Writer and reader have its address; only the cluster asks for a user and a database."""
    cluster = {"Engine": "aurora-postgresql", "DatabaseName": "app", **MANAGED}
    member = {"Engine": "aurora-postgresql", "DBInstanceClass": "db.serverless"}
    names = (
        "Endpoint.Address", "Endpoint.Port", "ReadEndpoint.Address", "DBClusterArn",
        "DBClusterResourceId", "MasterUserSecret.SecretArn",
    )  # fmt: skip
    outputs = {name.replace(".", ""): output(attribute("Cluster", name)) for name in names}
    told = plane.deploy(
        "aurora",
        {
            "Cluster": {"Type": "AWS::RDS::DBCluster", "Properties": cluster},
            "Writer": {
                "Type": "AWS::RDS::DBInstance",
                "Properties": {**member, "DBClusterIdentifier": {"Ref": "Cluster"}},
            },
        },
        Outputs={**outputs, "Writer": output(attribute("Writer", "Endpoint.Address"))},
    )
    assert told["EndpointAddress"] == told["ReadEndpointAddress"] == told["Writer"] == "127.0.0.1"
    assert told["EndpointPort"] == str(POSTGRES["port"])
    assert ":cluster:" in told["DBClusterArn"]
    assert told["DBClusterResourceId"].startswith("cluster-")
    secret = read_secret(plane, told["MasterUserSecretSecretArn"])
    assert plane.daemon.databases == [
        {"user": "owner", "password": secret["password"], "name": "app"}
    ]
    (found,) = plane.client("rds").describe_db_clusters()["DBClusters"]
    assert found["MasterUserSecret"]["SecretArn"] == told["MasterUserSecretSecretArn"]
    plane.delete("aurora")
    assert secret_names(plane) == []


def test_an_attached_secret_carries_the_clusters_address(plane: ControlPlane) -> None:
    """What Secrets Manager writes into it is where the local PostgreSQL is."""
    told = plane.deploy(
        "attached",
        {
            "Cluster": {
                "Type": "AWS::RDS::DBCluster",
                "Properties": {"Engine": "aurora-postgresql", **MANAGED},
            },
            "Secret": {
                "Type": "AWS::SecretsManager::Secret",
                "Properties": {"SecretString": json.dumps({"username": "app"})},
            },
            "Attached": {
                "Type": "AWS::SecretsManager::SecretTargetAttachment",
                "Properties": {
                    "SecretId": {"Ref": "Secret"},
                    "TargetId": {"Ref": "Cluster"},
                    "TargetType": "AWS::RDS::DBCluster",
                },
            },
        },
        Outputs={"Secret": output({"Ref": "Secret"})},
    )
    secret: dict[str, Any] = dict(read_secret(plane, told["Secret"]))
    assert (secret["host"], secret["port"]) == (POSTGRES["host"], POSTGRES["port"])


# Types that only have to exist


def test_types_without_a_part_here_are_accepted_with_their_attributes(plane: ControlPlane) -> None:
    """A template that uses them deploys, and what it reads of them has the right shape."""
    resources: dict[str, Any] = {
        "Application": {"Type": "AWS::CodeDeploy::Application", "Properties": {}},
        "Group": {
            "Type": "AWS::CodeDeploy::DeploymentGroup",
            "Properties": {"ApplicationName": {"Ref": "Application"}},
        },
        "Alarm": {
            "Type": "AWS::CloudWatch::CompositeAlarm",
            "Properties": {"AlarmName": "all", "AlarmRule": "FALSE"},
        },
        "Proxy": {"Type": "AWS::RDS::DBProxy", "Properties": {"DBProxyName": "one"}},
        "Endpoint": {
            "Type": "AWS::RDS::DBProxyEndpoint",
            "Properties": {"DBProxyName": "one", "DBProxyEndpointName": "read"},
        },
        "Secret": {"Type": "AWS::SecretsManager::Secret", "Properties": {"SecretString": "x"}},
        "Policy": {
            "Type": "AWS::SecretsManager::ResourcePolicy",
            "Properties": {"SecretId": {"Ref": "Secret"}, "ResourcePolicy": {}},
        },
    }
    outputs = {
        "Alarm": output(attribute("Alarm", "Arn")),
        "ProxyName": output({"Ref": "Proxy"}),
        "Proxy": output(attribute("Proxy", "DBProxyArn")),
        "Host": output(attribute("Proxy", "Endpoint")),
        "Vpc": output(attribute("Proxy", "VpcId")),
        "Endpoint": output(attribute("Endpoint", "DBProxyEndpointArn")),
    }
    told = plane.deploy("types", resources, Outputs=outputs)
    assert told["Alarm"].endswith(":alarm:all")
    assert told["ProxyName"] == "one"
    assert ":db-proxy:prx-" in told["Proxy"]
    assert ":db-proxy-endpoint:prx-endpoint-" in told["Endpoint"]
    assert told["Vpc"].startswith("vpc-")
    resources["Alarm"]["Properties"]["AlarmRule"] = "TRUE"
    assert plane.deploy("types", resources, Outputs=outputs) == told


# Parameters


def test_a_list_in_the_parameter_store_is_a_list_in_a_template(plane: ControlPlane) -> None:
    """Subnets of a function, Fn::Join and Fn::Select see its members."""
    subnets = ["subnet-a", "subnet-b"]
    plane.client("ssm").put_parameter(
        Name="/network/subnets", Type="StringList", Value=",".join(subnets), Overwrite=True
    )
    network = {"SubnetIds": {"Ref": "Subnets"}, "SecurityGroupIds": ["sg-1"]}
    told = plane.deploy(
        "lists",
        {"Function": function(VpcConfig=network)},
        Parameters={
            "Subnets": {
                "Type": "AWS::SSM::Parameter::Value<List<String>>",
                "Default": "/network/subnets",
            }
        },
        Outputs={
            "Name": output({"Ref": "Function"}),
            "Joined": output({"Fn::Join": ["|", {"Ref": "Subnets"}]}),
            "Second": output({"Fn::Select": [1, {"Ref": "Subnets"}]}),
        },
    )
    configuration = plane.client("lambda").get_function_configuration(FunctionName=told["Name"])
    assert configuration["VpcConfig"]["SubnetIds"] == subnets
    assert (told["Joined"], told["Second"]) == ("subnet-a|subnet-b", "subnet-b")


# Functions


def aliased(code: str, version: str, policy: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a function with a published version, as CDK names one, and an alias for it."""
    return {
        "Function": function(code),
        version: {
            "Type": "AWS::Lambda::Version",
            "Properties": {"FunctionName": {"Ref": "Function"}},
        },
        "Alias": {
            "Type": "AWS::Lambda::Alias",
            "Properties": {
                "FunctionName": {"Ref": "Function"},
                "FunctionVersion": attribute(version, "Version"),
                "Name": "live",
            },
            **({"UpdatePolicy": policy} if policy else {}),
        },
        "Other": function("other"),
    }


def code_of(inventory: Inventory, name: str, qualifier: str | None = None) -> str:
    """Read the deployed code of a function."""
    return (inventory.function(name, qualifier).code / "index.py").read_text()


GRADUAL = {
    "CodeDeployLambdaAliasUpdate": {
        "ApplicationName": "any",
        "DeploymentGroupName": "any",
        "BeforeAllowTrafficHook": "any",
    }
}
NAME = {"Name": output({"Ref": "Function"}), "Other": output({"Ref": "Other"})}


@pytest.mark.parametrize("policy", [None, GRADUAL], ids=["at once", "by CodeDeploy"])
def test_an_alias_is_at_the_newest_version_after_a_deployment(
    plane: ControlPlane, policy: dict[str, Any] | None
) -> None:
    """Also where CodeDeploy would shift traffic step by step: here nothing waits for it."""
    name = plane.deploy("alias", aliased("one", "V1", policy), Outputs=NAME)["Name"]
    get_alias = plane.client("lambda").get_alias
    assert get_alias(FunctionName=name, Name="live")["FunctionVersion"] == "1"
    plane.deploy("alias", aliased("two", "V2", policy), Outputs=NAME)
    assert get_alias(FunctionName=name, Name="live")["FunctionVersion"] == "2"


def test_a_function_with_an_alias_runs_what_the_alias_points_at(plane: ControlPlane) -> None:
    """Its published code and variables, whatever the newest code is; others run the newest."""
    told = plane.deploy("served", aliased("one", "V1"), Outputs=NAME)
    inventory = plane.inventory()
    before = {each.name: each for each in inventory.read().functions}
    seen = inventory.signature()
    # As `cdk deploy --hotswap` or a canary that has stopped half-way would leave it.
    with_new_code = {**aliased("two", "V1"), "Other": function("changed")}
    plane.deploy("served", with_new_code, Outputs=NAME)
    assert inventory.signature() != seen
    after = {each.name: each for each in inventory.read().functions}
    served = after[told["Name"]]
    assert (served.version, served.arn.rpartition(":")[2]) == ("1", "live")
    assert served.fingerprint == before[told["Name"]].fingerprint
    assert after[told["Other"]].fingerprint != before[told["Other"]].fingerprint
    assert after[told["Other"]].version == "$LATEST"
    fresh = plane.inventory()
    assert "'one'" in code_of(fresh, told["Name"], "live")
    assert "'two'" in code_of(fresh, told["Name"])

    client = plane.client("lambda")
    seen = inventory.signature()
    client.publish_version(FunctionName=told["Name"])
    client.update_alias(FunctionName=told["Name"], Name="live", FunctionVersion="2")
    assert inventory.signature() != seen
    after = {each.name: each for each in inventory.read().functions}
    assert "'two'" in (after[told["Name"]].code / "index.py").read_text()


def test_a_function_runs_in_the_version_that_the_caller_names(plane: ControlPlane) -> None:
    """By name it is the newest code, by alias and by number that version."""
    name = plane.deploy("versions", aliased("one", "V1"), Outputs=NAME)["Name"]
    client = plane.client("lambda")
    for called in (name, f"{name}:live", f"{name}:1"):
        client.invoke(FunctionName=called, Payload=b'{"a": 1}')
    assert [each.version for each in plane.daemon.invocations] == ["$LATEST", "1", "1"]
    assert {each.function for each in plane.daemon.invocations} == {name}


def test_the_alias_that_the_api_names_is_served(plane: ControlPlane) -> None:
    """A function may have several; the routes lead to one of them."""
    resources = aliased("one", "V1")
    resources["Alias"]["Properties"]["Name"] = "zebra"
    resources["First"] = {
        "Type": "AWS::Lambda::Alias",
        "Properties": {
            "FunctionName": {"Ref": "Function"},
            "FunctionVersion": "$LATEST",
            "Name": "aardvark",
        },
    }
    resources |= http_api({"Ref": "Alias"})
    name = plane.deploy("routes", resources, Outputs=NAME)["Name"]
    deployed = plane.inventory().read()
    served = {each.name: each for each in deployed.functions}[name]
    assert (served.version, served.arn.rpartition(":")[2]) == ("1", "zebra")
    (api,) = deployed.apis
    assert [route.function for route in api.routes] == [name]


def test_new_code_beside_a_stack_is_served_and_taken_back_by_a_deployment(
    plane: ControlPlane,
) -> None:
    """As the development loop does it: a stack that has not changed serves its own code again."""
    resources = aliased("one", "V1")
    name = plane.deploy("loop", resources, Outputs=NAME)["Name"]
    inventory, direct, client = plane.inventory(), plane.direct(), plane.client("lambda")
    for code in ("two", "three"):
        version = direct.publish_code(name, archive_of(code))
        direct.move(name, "live", version)
        assert f"'{code}'" in code_of(inventory, name, "live")
    assert versions_of(client, name) == {"$LATEST", "1", "3"}, "what nothing uses is removed"

    direct.restore()
    assert "'three'" in code_of(inventory, name, "live"), "requests run on while it deploys"
    assert "'one'" in code_of(inventory, name)
    direct.resume()
    assert "'three'" in code_of(inventory, name), "the deployment has failed"
    direct.restore()
    direct.follow_stacks()
    assert "'one'" in code_of(inventory, name, "live")
    assert versions_of(client, name) == {"$LATEST", "1"}


def test_a_deployment_of_a_setting_does_not_publish_code_that_is_no_longer_there(
    plane: ControlPlane,
) -> None:
    """The file is again what it was when the stack was deployed; only a variable has changed."""
    name = plane.deploy("drift", aliased("one", "V1"), Outputs=NAME)["Name"]
    inventory, direct = plane.inventory(), plane.direct()
    direct.move(name, "live", direct.publish_code(name, archive_of("two")))
    resources = aliased("one", "V2")
    resources["Function"]["Properties"]["Timeout"] = 9
    direct.restore()
    plane.deploy("drift", resources, Outputs=NAME)
    direct.follow_stacks()
    assert "'one'" in code_of(inventory, name, "live")
    assert inventory.function(name, "live").timeout == 9


def test_code_that_does_not_start_is_not_in_the_next_version(plane: ControlPlane) -> None:
    """A new layer after it comes with the code that runs."""
    name = plane.deploy("broken", aliased("one", "V1"), Outputs=NAME)["Name"]
    inventory, direct, client = plane.inventory(), plane.direct(), plane.client("lambda")
    direct.take_back(name, "live", direct.publish_code(name, archive_of("broken")))
    assert "'one'" in code_of(inventory, name)
    assert versions_of(client, name) == {"$LATEST", "1"}


def test_a_new_layer_replaces_the_deployed_one(plane: ControlPlane) -> None:
    """Functions with another layer, or none, keep what they have."""
    client = plane.client("lambda")
    old = client.publish_layer_version(LayerName="loop", Content={"ZipFile": archive_of("old")})
    plane.client("ssm").put_parameter(
        Name="/loop/layer/arn", Type="String", Value=old["LayerVersionArn"], Overwrite=True
    )
    resources = aliased("one", "V1")
    resources["Function"]["Properties"]["Layers"] = [old["LayerVersionArn"]]
    told = plane.deploy("layers", resources, Outputs=NAME)
    inventory, direct = plane.inventory(), plane.direct("/loop/layer/arn")
    new = direct.publish_layer(archive_of("new"))
    version = direct.take_layer(told["Name"], new)
    assert version is not None
    direct.move(told["Name"], "live", version)
    (layer,) = inventory.function(told["Name"], "live").layers
    assert "'new'" in (layer / "index.py").read_text()
    assert direct.take_layer(told["Other"], new) is None


def archive_of(code: str) -> bytes:
    """Return the zip file of a function's code."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("index.py", f"def handler(event, context): return {code!r}\n")
    return buffer.getvalue()


def versions_of(client: Any, name: str) -> set[str]:
    """List the versions of a function."""
    listed = client.list_versions_by_function(FunctionName=name)["Versions"]
    return {str(each["Version"]) for each in listed}


def http_api(target: Any) -> dict[str, Any]:
    """Return an HTTP API with one route to a function."""
    api = {"ApiId": {"Ref": "Api"}}
    return {
        "Api": {
            "Type": "AWS::ApiGatewayV2::Api",
            "Properties": {"Name": "api", "ProtocolType": "HTTP"},
        },
        "Integration": {
            "Type": "AWS::ApiGatewayV2::Integration",
            "Properties": {
                **api,
                "IntegrationType": "AWS_PROXY",
                "IntegrationUri": target,
                "PayloadFormatVersion": "2.0",
            },
        },
        "Route": {
            "Type": "AWS::ApiGatewayV2::Route",
            "Properties": {
                **api,
                "RouteKey": "GET /",
                "Target": {"Fn::Join": ["/", ["integrations", {"Ref": "Integration"}]]},
            },
        },
        "Stage": {
            "Type": "AWS::ApiGatewayV2::Stage",
            "Properties": {**api, "StageName": "$default", "AutoDeploy": True},
        },
    }


# The pooler's service


def service(variables: dict[str, str] | None, **properties: Any) -> dict[str, Any]:
    """Return an ECS service with one container."""
    container: dict[str, Any] = {"Name": "main", "Image": "any", "StopTimeout": 40}
    if variables is not None:
        container["Environment"] = [{"Name": k, "Value": v} for k, v in variables.items()]
    return {
        "Cluster": {"Type": "AWS::ECS::Cluster", "Properties": {}},
        "Task": {
            "Type": "AWS::ECS::TaskDefinition",
            "Properties": {"Family": "pool", "ContainerDefinitions": [container]},
        },
        "Service": {
            "Type": "AWS::ECS::Service",
            "Properties": {
                "Cluster": {"Ref": "Cluster"},
                "TaskDefinition": {"Ref": "Task"},
                "DesiredCount": 2,
                "DeploymentConfiguration": {"MinimumHealthyPercent": 50, "MaximumPercent": 150},
                **properties,
            },
        },
    }


def registered_service() -> dict[str, Any]:
    """Return a service whose tasks are in Cloud Map and behind a target group."""
    registry = {"RegistryArn": attribute("Registry", "Arn")}
    balanced = {"TargetGroupArn": {"Ref": "Targets"}, "ContainerName": "main", "ContainerPort": 1}
    attributes = [{"Key": "deregistration_delay.timeout_seconds", "Value": "7"}]
    return {
        "Namespace": {
            "Type": "AWS::ServiceDiscovery::PrivateDnsNamespace",
            "Properties": {"Name": "pool.internal", "Vpc": "vpc-1"},
        },
        "Registry": {
            "Type": "AWS::ServiceDiscovery::Service",
            "Properties": {"Name": "tasks", "NamespaceId": {"Ref": "Namespace"}},
        },
        "Targets": {
            "Type": "AWS::ElasticLoadBalancingV2::TargetGroup",
            "Properties": {"Protocol": "TCP", "Port": 1, "TargetGroupAttributes": attributes},
        },
        **service(
            {"USER_SECRET_ARNS": "x", "LISTEN_PORT": "1"},
            ServiceRegistries=[registry],
            LoadBalancers=[balanced],
        ),
    }


def test_the_pooler_is_found_among_the_services_of_other_apps(plane: ControlPlane) -> None:
    """Its container has the variable that no other has; all of its settings are read."""
    plane.deploy("another", service(None))
    plane.deploy("pooler", registered_service())
    plane.deploy("last", service({"COLOUR": "blue"}))
    found = plane.inventory().read().pooler
    assert found is not None
    assert found.task.variables == {"USER_SECRET_ARNS": "x", "LISTEN_PORT": "1"}
    assert (found.task.family, found.task.stop_timeout) == ("pool", 40)
    assert (found.desired, found.minimum_percent, found.maximum_percent) == (2, 50, 150)
    assert found.deregistration_delay == 7
    assert len(found.registries) == 1


def test_a_change_of_the_service_by_the_ecs_api_is_seen(plane: ControlPlane) -> None:
    """A number, a new deployment of the same, and nothing when nothing has changed."""
    plane.deploy("pooler", registered_service())
    inventory = plane.inventory()
    before = inventory.read().pooler
    assert before is not None
    seen = [inventory.signature()]
    assert inventory.signature() == seen[0]
    ecs = plane.client("ecs")
    ecs.update_service(cluster=before.cluster, service=before.name, desiredCount=3)
    scaled = inventory.read().pooler
    assert scaled is not None
    assert (scaled.desired, scaled.deployment) == (3, before.deployment)
    seen.append(inventory.signature())
    ecs.update_service(cluster=before.cluster, service=before.name, forceNewDeployment=True)
    forced = inventory.read().pooler
    assert forced is not None
    assert forced.deployment != scaled.deployment
    seen.append(inventory.signature())
    assert len(set(seen)) == 3


def test_a_pooler_that_is_destroyed_is_gone_at_the_next_look(plane: ControlPlane) -> None:
    """With its cluster, which was known a moment ago."""
    plane.deploy("pooler", registered_service())
    inventory = plane.inventory()
    assert inventory.read().pooler is not None
    seen = inventory.signature()
    plane.delete("pooler")
    assert inventory.signature() != seen
    assert inventory.read().pooler is None


def test_registries_survive_an_update_of_the_stack(plane: ControlPlane) -> None:
    """CloudFormation keeps them with the service, and takes them away when they are dropped."""
    resources = registered_service()
    plane.deploy("pooler", resources)
    resources["Service"]["Properties"]["DesiredCount"] = 1
    plane.deploy("pooler", resources)
    found = plane.inventory().read().pooler
    assert found is not None
    assert (found.desired, len(found.registries)) == (1, 1)
    del resources["Service"]["Properties"]["ServiceRegistries"]
    plane.deploy("pooler", resources)
    without = plane.inventory().read().pooler
    assert without is not None
    assert without.registries == ()
    assert without.deployment != found.deployment


def test_registries_can_be_changed_by_the_ecs_api(plane: ControlPlane) -> None:
    """UpdateService takes them, and replaces all tasks."""
    plane.deploy("pooler", registered_service())
    before = plane.inventory().read().pooler
    assert before is not None
    plane.client("ecs").update_service(
        cluster=before.cluster, service=before.name, serviceRegistries=[]
    )
    after = plane.inventory().read().pooler
    assert after is not None
    assert after.registries == ()
    assert after.deployment != before.deployment


def test_tasks_can_be_discovered(plane: ControlPlane) -> None:
    """With the SDK's request without a prefix of the host name."""
    plane.deploy("pooler", registered_service())
    found = plane.inventory().read().pooler
    assert found is not None
    (registry,) = found.registries
    names = CloudMap(plane.url, REGION, KEY)
    names.register(found, "one", "127.0.0.2")
    names.register(found, "two", "127.0.0.3")
    assert discovered(plane) == {"127.0.0.2", "127.0.0.3"}
    names.deregister(found, "one")
    assert discovered(plane) == {"127.0.0.3"}
    plane.client("servicediscovery").deregister_instance(ServiceId=registry, InstanceId="two")


def discovered(plane: ControlPlane) -> set[str]:
    """Ask Cloud Map for the addresses of all tasks, as a task does."""
    script = (
        "import boto3;"
        "found = boto3.client('servicediscovery').discover_instances("
        "NamespaceName='pool.internal', ServiceName='tasks')['Instances'];"
        "print(' '.join(each['Attributes']['AWS_INSTANCE_IPV4'] for each in found))"
    )
    environment = {"PATH": os.environ["PATH"], **sdk_variables(plane.url, REGION, KEY)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_the_apis_and_the_functions_of_all_apps_are_served(plane: ControlPlane) -> None:
    """A second app does not take the address of the first: the oldest API is the first one."""
    first = {"Function": function(), **http_api(attribute("Function", "Arn"))}
    name = plane.deploy("a", first, Outputs={"Name": output({"Ref": "Function"})})["Name"]
    before = plane.inventory().read()
    other = plane.deploy("b", first, Outputs={"Name": output({"Ref": "Function"})})["Name"]
    after = plane.inventory().read()
    assert before.apis == after.apis[:1]
    assert [api.routes[0].function for api in after.apis] == [name, other]
    assert {each.name for each in after.functions} == {name, other}


def test_the_limits_of_one_route_beat_those_of_its_stage(plane: ControlPlane) -> None:
    """The settings of the stage are for the routes that have none."""
    resources = {"Function": function(), **http_api(attribute("Function", "Arn"))}
    route = resources["Route"]["Properties"]
    resources["Other"] = {**resources["Route"], "Properties": {**route, "RouteKey": "POST /sql"}}
    resources["Stage"]["DependsOn"] = ["Other"]
    resources["Stage"]["Properties"] |= {
        "DefaultRouteSettings": {"ThrottlingRateLimit": 50, "ThrottlingBurstLimit": 100},
        "RouteSettings": {"POST /sql": {"ThrottlingRateLimit": 5, "ThrottlingBurstLimit": 10}},
    }
    plane.deploy("limits", resources)
    (api,) = plane.inventory().read().apis
    limits = {route.key: route.throttle for route in api.routes}
    assert limits == {"GET /": Throttle(50.0, 100), "POST /sql": Throttle(5.0, 10)}


def test_custom_domain_names_lead_to_their_apis(plane: ControlPlane) -> None:
    """A mapping to the paths below a key is not served, and one that goes is noticed."""
    first = {"Function": function(), **http_api(attribute("Function", "Arn"))}
    api = plane.deploy("a", first, Outputs={"Id": output({"Ref": "Api"})})["Id"]
    names = {
        **domain("One", "API.example.test"),
        **domain("Two", "below.example.test", ApiMappingKey="v1"),
    }
    plane.deploy("b", first)
    plane.deploy("a", first | names, Outputs={"Id": output({"Ref": "Api"})})
    inventory = plane.inventory()
    assert inventory.read().domains == (CustomDomain("api.example.test", api),)
    seen = inventory.signature()
    plane.deploy("a", first, Outputs={"Id": output({"Ref": "Api"})})
    assert inventory.signature() != seen
    assert inventory.read().domains == ()


def domain(name: str, text: str, **mapping: Any) -> dict[str, Any]:
    """Return a custom domain name of the API, with its certificate."""
    certificate = {"DomainName": text, "ValidationMethod": "DNS"}
    configuration = {"CertificateArn": {"Ref": f"{name}Certificate"}, "EndpointType": "REGIONAL"}
    leads = {"ApiId": {"Ref": "Api"}, "DomainName": {"Ref": name}, "Stage": {"Ref": "Stage"}}
    return {
        f"{name}Certificate": {
            "Type": "AWS::CertificateManager::Certificate",
            "Properties": certificate,
        },
        name: {
            "Type": "AWS::ApiGatewayV2::DomainName",
            "Properties": {"DomainName": text, "DomainNameConfigurations": [configuration]},
        },
        f"{name}Mapping": {
            "Type": "AWS::ApiGatewayV2::ApiMapping",
            "Properties": leads | mapping,
        },
    }


def test_apis_and_routes_that_are_not_served_break_nothing(plane: ControlPlane) -> None:
    """An API without a stage, a WebSocket API, and a route that IAM protects or that has no end."""
    resources = {"Function": function(), **http_api(attribute("Function", "Arn"))}
    route = resources["Route"]["Properties"]
    kinds: dict[str, dict[str, Any]] = {
        "Iam": {"AuthorizationType": "AWS_IAM"},
        "Nowhere": {"Target": None},
    }
    for name, more in kinds.items():
        given = {**route, "RouteKey": f"GET /{name}", **more}
        properties = {key: value for key, value in given.items() if value is not None}
        resources[name] = {**resources["Route"], "Properties": properties}
    for name, protocol in {"Bare": "HTTP", "Sockets": "WEBSOCKET"}.items():
        properties = {"Name": name, "ProtocolType": protocol}
        resources[name] = {**resources["Api"], "Properties": properties}
    plane.deploy("odd", resources)
    (api,) = plane.inventory().read().apis
    assert [route.key for route in api.routes] == ["GET /"]


def test_code_of_another_version_is_not_taken_from_the_cache(
    plane: ControlPlane, tmp_path: Path
) -> None:
    """Each version's own zip is fetched, also when the newest was there first."""
    name = plane.deploy("zips", aliased("one", "V1"), Outputs=NAME)["Name"]
    plane.deploy("zips", aliased("two", "V1"), Outputs=NAME)
    inventory = Inventory(plane.url, "us-east-1", KEY, tmp_path)
    assert "'two'" in code_of(inventory, name)
    assert "'one'" in code_of(inventory, name, "1")
