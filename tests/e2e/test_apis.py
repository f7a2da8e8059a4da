"""Two APIs and custom domain names in one cloud, deployed by a separate small template."""

import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.cloud import LocalCloud, Options
from lambda_pg_cdk.local.http.caller import call
from lambda_pg_cdk.local.http_api.issuer import AUDIENCE
from lambda_pg_cdk.local.paths import another_state_dir

STACK = "apis"
SUBJECT = "6f1c7f5e-8f57-4c3c-9c7e-0d7f3a1f2b6d"
PAGE = {"Origin": "https://a.example", "Sec-Fetch-Site": "cross-site"}
CODE = """
import base64, gzip, json

def handler(event, context):
    about = event["requestContext"]
    if about["http"]["method"] == "OPTIONS":
        return {"statusCode": 200, "headers": {"access-control-allow-origin": "https://a.example"}}
    size = int(event.get("queryStringParameters", {}).get("size", 0))
    told = {"api": about["apiId"], "domain": about["domainName"], "more": "a" * size}
    told["subject"] = about.get("authorizer", {}).get("jwt", {}).get("claims", {}).get("sub")
    if event.get("queryStringParameters", {}).get("gzip"):
        body = base64.b64encode(gzip.compress(json.dumps(told).encode())).decode()
        headers = {"content-encoding": "gzip", "content-type": "application/json"}
        return {"statusCode": 200, "headers": headers, "body": body, "isBase64Encoded": True}
    return {"statusCode": 200, "body": json.dumps(told)}
"""


def resources(issuer: str) -> dict[str, Any]:
    """Return a function, and two APIs with a route to it; the second wants a token."""
    runtime = f"python{sys.version_info.major}.{sys.version_info.minor}"
    role = "arn:aws:iam::000000000000:role/any"
    function = {"Runtime": runtime, "Handler": "index.handler", "Role": role, "Timeout": 10}
    guarded = {"AuthorizationType": "JWT", "AuthorizerId": {"Ref": "Authorizer"}}
    return {
        "Function": made("Lambda", "Function", {**function, "Code": {"ZipFile": CODE}}),
        **api("Open", {"ANY /sql": {}, "OPTIONS /sql": {}}),
        **api("Jwt", {"POST /sql": guarded, "OPTIONS /sql": {}}, DependsOn="OpenStage"),
        "Authorizer": made(
            "ApiGatewayV2",
            "Authorizer",
            {
                "ApiId": {"Ref": "Jwt"},
                "AuthorizerType": "JWT",
                "Name": "token",
                "IdentitySource": ["$request.header.Authorization"],
                "JwtConfiguration": {"Issuer": issuer, "Audience": [AUDIENCE]},
            },
        ),
        **domain("api", "Open"),
        **domain("apiauth", "Jwt"),
    }


def made(service: str, kind: str, properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a resource."""
    return {"Type": f"AWS::{service}::{kind}", "Properties": properties, **more}


def api(name: str, routes: dict[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Return an HTTP API whose routes lead to the function."""
    of, target = {"ApiId": {"Ref": name}}, {"Fn::GetAtt": ["Function", "Arn"]}
    named = {"Name": "Http", "Description": name}
    integration = {"IntegrationType": "AWS_PROXY", "PayloadFormatVersion": "2.0"}
    found = {
        name: made("ApiGatewayV2", "Api", {**named, "ProtocolType": "HTTP"}, **more),
        f"{name}Integration": made(
            "ApiGatewayV2", "Integration", {**of, **integration, "IntegrationUri": target}
        ),
        f"{name}Stage": made("ApiGatewayV2", "Stage", {**of, "StageName": "$default"}),
    }
    leads = {"Fn::Join": ["/", ["integrations", {"Ref": f"{name}Integration"}]]}
    for number, (key, options) in enumerate(routes.items()):
        properties = {**of, "RouteKey": key, "Target": leads, **options}
        found[f"{name}Route{number}"] = made("ApiGatewayV2", "Route", properties)
    return found


def domain(label: str, name: str) -> dict[str, Any]:
    """Return a custom domain name of an API."""
    text = f"{label}.example.test"
    configuration = {"CertificateArn": {"Ref": f"{label}Certificate"}, "EndpointType": "REGIONAL"}
    leads = {"ApiId": {"Ref": name}, "DomainName": {"Ref": label}, "Stage": {"Ref": f"{name}Stage"}}
    return {
        f"{label}Certificate": made("CertificateManager", "Certificate", {"DomainName": text}),
        label: made(
            "ApiGatewayV2",
            "DomainName",
            {"DomainName": text, "DomainNameConfigurations": [configuration]},
        ),
        f"{label}Mapping": made("ApiGatewayV2", "ApiMapping", leads),
    }


@pytest.fixture(scope="module")
def cloud() -> Iterator[LocalCloud]:
    """Start a cloud without the project's app, and deploy the two APIs."""
    with LocalCloud(another_state_dir(), Options(bound=True, deploy=False)) as started:
        template = json.dumps({"Resources": resources(started.state.issuer_url)})
        stacks = started.client("cloudformation")
        stacks.create_stack(StackName=STACK, TemplateBody=template)
        stacks.get_waiter("stack_create_complete").wait(
            StackName=STACK, WaiterConfig={"Delay": 1, "MaxAttempts": 60}
        )
        started.reconcile()
        yield started


@pytest.fixture(scope="module")
def apis(cloud: LocalCloud) -> dict[str, dict[str, Any]]:
    """What `status` says of the APIs, by name."""
    return {each["name"]: each for each in cloud.status()["apis"]}


def test_each_api_has_an_address_and_its_own_authorizer(
    cloud: LocalCloud, apis: dict[str, dict[str, Any]]
) -> None:
    """The oldest is at the address of the cloud; a token of the cloud opens the other one."""
    assert apis["Open"]["url"] == cloud.url != apis["Jwt"]["url"]
    answer = call(cloud.url, "POST", "/sql", body={})
    assert (answer.status, answer.json()["api"]) == (200, apis["Open"]["id"])
    assert call(apis["Jwt"]["url"], "POST", "/sql", body={}).status == 401
    answer = call(apis["Jwt"]["url"], "POST", "/sql", cloud.token(SUBJECT), {})
    assert (answer.status, answer.json()["subject"]) == (200, SUBJECT)
    assert answer.json()["api"] == apis["Jwt"]["id"]


def test_status_and_its_routes_name_both(
    cloud: LocalCloud, apis: dict[str, dict[str, Any]]
) -> None:
    """As text, and as JSON for scripts."""
    said = subprocess.run(
        [sys.executable, "-m", "lambda_pg_cdk.local", "status"],
        cwd=PROJECT,
        env={**os.environ, "LAMBDA_PG_STATE_DIR": str(cloud.folder)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"API      {apis['Jwt']['url']} (Jwt)" in said
    assert apis["Jwt"]["routes"] == ["OPTIONS /sql", "POST /sql"]
    for each in cloud.status()["domains"]:
        assert f"https://{each['name']} at 127.0.0.1:{each['port']}, CA {each['ca_file']}" in said


@pytest.mark.parametrize("name", ["Open", "Jwt"])
def test_a_preflight_needs_no_token_and_gets_the_functions_headers(
    apis: dict[str, dict[str, Any]], name: str
) -> None:
    """Beside an authorizer and beside ANY, where the API has no CORS configuration."""
    address = urlsplit(apis[name]["url"])
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)
    connection.request("OPTIONS", "/sql", headers=PAGE)
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"")
    assert response.headers.get_all("access-control-allow-origin") == ["https://a.example"]
    connection.close()


@pytest.mark.parametrize(("query", "status"), [("size=5000000", 200), ("size=7000000", 500)])
def test_an_answer_of_more_than_6_mb_is_500(cloud: LocalCloud, query: str, status: int) -> None:
    """Lambda rejects it, so the API answers as for a function that fails."""
    answer = call(cloud.url, "POST", f"/sql?{query}", body={})
    assert answer.status == status
    if status == 500:
        assert answer.json() == {"message": "Internal Server Error"}


FETCH = """
const answers = [];
for (const url of process.argv.slice(1)) {
  const headers = url.includes("apiauth") ? { Authorization: `Bearer ${process.env.TOKEN}` } : {};
  const answer = await fetch(url, { method: "POST", body: "{}", headers });
  answers.push([answer.status, await answer.json()]);
}
console.log(JSON.stringify(answers));
"""


def test_an_unmodified_client_reaches_both_custom_domains_at_port_443(
    cloud: LocalCloud, apis: dict[str, dict[str, Any]]
) -> None:
    """Node's fetch checks the certificate, and decompresses; the URLs have no port."""
    names = {each["name"]: each for each in cloud.status()["domains"]}
    assert set(names) == {"api.example.test", "apiauth.example.test"}
    environment = {
        "PATH": os.environ["PATH"],
        "NODE_EXTRA_CA_CERTS": names["api.example.test"]["ca_file"],
        "LOOPBACK": json.dumps({name: each["port"] for name, each in names.items()}),
        "TOKEN": cloud.token(SUBJECT),
    }
    urls = ["https://api.example.test/sql?gzip=1", "https://apiauth.example.test/sql"]
    preload = PROJECT / "tests" / "support" / "loopback.mjs"
    command = ["node", "--import", str(preload), "--input-type=module", "--eval", FETCH, *urls]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (first, one), (second, two) = json.loads(done.stdout)
    assert (first, one["api"], one["domain"]) == (200, apis["Open"]["id"], "api.example.test")
    assert (second, two["api"], two["domain"]) == (200, apis["Jwt"]["id"], "apiauth.example.test")
    assert (one["subject"], two["subject"]) == (None, SUBJECT)


@pytest.mark.parametrize("name", ["other.example.test", "example.test", None])
def test_a_name_that_is_not_deployed_gets_no_connection(
    cloud: LocalCloud, name: str | None
) -> None:
    """Also a client that sends no name: there is no certificate for it."""
    (port, *_) = {each["port"] for each in cloud.status()["domains"]}
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), 30) as connection,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(connection, server_hostname=name)


def test_the_ports_end_with_their_stack(cloud: LocalCloud, apis: dict[str, dict[str, Any]]) -> None:
    """The address of the cloud stays; the others refuse connections."""
    ports = [urlsplit(apis["Jwt"]["url"]).port, cloud.status()["domains"][0]["port"]]
    stacks = cloud.client("cloudformation")
    stacks.delete_stack(StackName=STACK)
    stacks.get_waiter("stack_delete_complete").wait(
        StackName=STACK, WaiterConfig={"Delay": 1, "MaxAttempts": 60}
    )
    cloud.reconcile()
    found = cloud.status()
    assert (found["apis"], found["domains"]) == ([], [])
    assert call(cloud.url, "POST", "/sql", body={}).status == 404
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            http.client.HTTPConnection("127.0.0.1", port, timeout=10).connect()
