"""Routes with scopes, the trigger that puts scopes into Cognito's tokens, and CORS."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lambda_pg_cdk.functions.sql.sql_http.answers import SPOKEN
from tests.support.apps import OwnApp
from tests.support.templates import Stage, synthesise_once

ROUTE = "AWS::ApiGatewayV2::Route"
GROUP = "AWS::Cognito::UserPoolGroup"
PERMISSION = "AWS::Lambda::Permission"

PAGES = ["https://www.example.com", "http://localhost:8080"]
OWN_ISSUER = {"issuer": "https://issuer.example", "audience": ["app"]}
SAMPLE = {
    "ANY /users": ["users:read", "users:write"],
    "GET /users": ["users:read"],
    "POST /users": ["users:write"],
    "ANY /users/{id}": ["users:read", "users:write"],
    "GET /users/{id}": ["users:read"],
    "PATCH /users/{id}": ["users:write"],
    "ANY /notes": ["notes:write"],
    "POST /notes": ["notes:write"],
    "ANY /notes/{id}": ["notes:read"],
    "GET /notes/{id}": ["notes:read"],
}
"""The routes of the samples and the scopes of each."""

SCOPES = sorted({scope for scopes in SAMPLE.values() for scope in scopes})


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> OwnApp:
    """Give an app with scopes on its routes, without the sample, after its synthesis."""
    own = OwnApp(tmp_path_factory.mktemp("own"), {"sample_api": False})
    orders = own.stage.new_function("orders", own.folder, concurrency=5)
    own.stage.route("GET /orders", orders, scopes=["orders:read", "orders:write"])
    own.stage.route("POST /orders", orders, scopes=("orders:write",))
    own.stage.route("GET /free", orders)
    for number in range(10):
        own.stage.route(f"GET /more/{number}", orders)
    elsewhere = own.function()
    own.stage.route("GET /reports", elsewhere, scopes=["reports/read"])
    own.stage.synth()
    return own


def scopes_of(routes: dict[str, dict[str, Any]]) -> dict[str, list[str] | None]:
    """Read the scopes of routes by their keys; public routes are left out."""
    found = [each["Properties"] for each in routes.values()]
    return {
        each["RouteKey"]: each.get("AuthorizationScopes")
        for each in found
        if each.get("AuthorizationType") == "JWT"
    }


def groups_of(resources: dict[str, dict[str, Any]]) -> set[str]:
    """Read the names of groups."""
    return {each["Properties"]["GroupName"] for each in resources.values()}


# Scopes


def test_routes_of_the_sample_ask_for_scopes_by_method(prod: Stage) -> None:
    """Another method asks for one of the path's, and is answered 405 by the function."""
    assert scopes_of(prod.all(ROUTE)) == SAMPLE


def test_the_document_of_the_sample_names_the_scopes_of_its_routes() -> None:
    """OpenAPI's names of parameters are the function's."""
    from lambda_pg_cdk.functions.users.users_api.document import OPERATIONS

    documented = {
        f"{method.upper()} {path.replace('user_id', 'id')}": [operation.scope]
        for (path, method), operation in OPERATIONS.items()
    }
    routed = {key: scopes for key, scopes in SAMPLE.items() if "/users" in key}
    assert documented == {key: each for key, each in routed.items() if not key.startswith("ANY")}


def test_each_scope_has_its_group(prod: Stage) -> None:
    """Of the stage's user pool."""
    (pool,) = prod.resources("Api", "AWS::Cognito::UserPool")
    groups = prod.resources("Api", GROUP)
    assert groups_of(groups) == set(SCOPES)
    assert all(each["Properties"]["UserPoolId"] == {"Ref": pool} for each in groups.values())


def test_cognito_asks_the_trigger_for_the_scopes_of_access_tokens(prod: Stage) -> None:
    """In the event version that has access tokens, on the plan that has the version."""
    (pool,) = prod.resources("Api", "AWS::Cognito::UserPool").values()
    trigger = pool["Properties"]["LambdaConfig"]["PreTokenGenerationConfig"]
    assert trigger["LambdaVersion"] == "V2_0"
    assert pool["Properties"]["UserPoolTier"] == "ESSENTIALS"
    name, _ = trigger["LambdaArn"]["Fn::GetAtt"]
    properties = prod.templates["Api"]["Resources"][name]["Properties"]
    assert properties == prod.functions()["scopes"]
    assert properties["Environment"]["Variables"]["SCOPES"] == " ".join(SCOPES)


def test_the_trigger_can_do_nothing_but_log(prod: Stage) -> None:
    """No network, no database, no secret; only the stage's user pool may invoke it."""
    trigger = prod.functions()["scopes"]
    assert not {"VpcConfig", "Layers", "SnapStart", "ReservedConcurrentExecutions"} & set(trigger)
    variables = set(trigger["Environment"]["Variables"])
    assert variables == {"POWERTOOLS_SERVICE_NAME", "POWERTOOLS_LOG_LEVEL", "SCOPES"}
    role = trigger["Role"]["Fn::GetAtt"][0]
    actions = {
        action
        for policy in prod.all("AWS::IAM::Policy").values()
        if {"Ref": role} in policy["Properties"]["Roles"]
        for statement in policy["Properties"]["PolicyDocument"]["Statement"]
        for action in statement["Action"]
    }
    assert actions == {"xray:PutTelemetryRecords", "xray:PutTraceSegments"}
    (pool,) = prod.resources("Api", "AWS::Cognito::UserPool")
    (permission,) = [
        each["Properties"]
        for each in prod.resources("Api", PERMISSION).values()
        if each["Properties"]["Principal"] == "cognito-idp.amazonaws.com"
    ]
    assert permission["SourceArn"] == {"Fn::GetAtt": [pool, "Arn"]}


def test_a_failed_trigger_fires_an_alarm(own: OwnApp, prod: Stage) -> None:
    """Nobody could sign in, and the API would notice nothing. Once, for all routes."""
    of_stage = prod.resources("Observability", "AWS::CloudWatch::Alarm")
    of_app = own.resources("Observability", "AWS::CloudWatch::Alarm")
    for alarms in (of_stage, of_app):
        found = [
            each["Properties"]["Metrics"][0]["MetricStat"]["Metric"]["MetricName"]
            for each in alarms.values()
            if "#sign-ins-fail" in each["Properties"]["AlarmDescription"]
        ]
        assert sorted(found) == ["Errors", "Throttles"]


def test_routes_of_an_app_have_scopes(own: OwnApp) -> None:
    """In the order of the call; a route without them takes every token of the issuer."""
    found = scopes_of(own.resources("Api", ROUTE))
    assert found["GET /orders"] == ["orders:read", "orders:write"]
    assert found["POST /orders"] == ["orders:write"]
    assert found["GET /free"] is None
    assert scopes_of(own.resources("Own", ROUTE)) == {"GET /reports": ["reports/read"]}


def test_a_scope_of_any_stack_has_its_group_once(own: OwnApp) -> None:
    """The trigger knows them all, also that of a route added last."""
    expected = {"orders:read", "orders:write", "reports/read"}
    assert groups_of(own.resources("Api", GROUP)) == expected
    assert len(own.resources("Api", GROUP)) == len(expected)
    assert not own.resources("Own", GROUP)
    told = [
        each["Properties"]["Environment"]["Variables"]["SCOPES"]
        for each in own.resources("Api", "AWS::Lambda::Function").values()
        if "SCOPES" in each["Properties"].get("Environment", {}).get("Variables", {})
    ]
    assert told == ["orders:read orders:write reports/read"]


def test_without_scopes_the_templates_have_nothing_of_them(tmp_path: Path) -> None:
    """Neither trigger nor group; the pool keeps its plan. The sample has the routes of before."""
    off = synthesise_once("dev", {"identity": {"scopes": False}})
    assert scopes_of(off.all(ROUTE)) == {key: None for key in SAMPLE if key.startswith("ANY ")}
    bare = OwnApp(tmp_path, {"sample_api": False})
    bare.stage.route("GET /orders", bare.function())
    for text in (json.dumps(off.templates["Api"]), json.dumps(bare.template("Api"))):
        assert "identity/scopes-function" not in text
        for word in ("UserPoolGroup", "LambdaConfig", "UserPoolTier", "SCOPES", "Scopes"):
            assert word not in text


def test_routes_of_an_app_have_scopes_also_where_the_sample_has_none(tmp_path: Path) -> None:
    """So groups can have users before the sample asks for their scopes."""
    app = OwnApp(tmp_path, {"identity": {"scopes": False}})
    app.stage.route("GET /me", app.function(), scopes=["users:read"])
    assert scopes_of(app.resources("Own", ROUTE)) == {"GET /me": ["users:read"]}
    assert groups_of(app.resources("Api", GROUP)) == {"users:read"}
    assert set(scopes_of(app.resources("Api", ROUTE)).values()) == {None}


def test_an_issuer_of_one_s_own_brings_its_own_scopes(tmp_path: Path) -> None:
    """The routes ask for them; there is no pool whose tokens could get them."""
    sample = synthesise_once("dev", {"identity": OWN_ISSUER})
    assert scopes_of(sample.all(ROUTE)) == SAMPLE
    app = OwnApp(tmp_path, {"identity": {**OWN_ISSUER, "scopes": False}, "sample_api": False})
    app.stage.route("GET /orders", app.function(), scopes=["orders:read"])
    assert scopes_of(app.resources("Own", ROUTE)) == {"GET /orders": ["orders:read"]}
    for template in (sample.templates["Api"], app.template("Api")):
        assert not {"LambdaConfig", GROUP} & set(json.dumps(template).split('"'))


# Permissions


def test_many_routes_of_a_function_have_few_permissions(own: OwnApp) -> None:
    """Ten for their paths, and one for the API: thirty would fill the function's policy."""
    found = own.resources("Api", PERMISSION)
    sources = [
        each["Properties"]["SourceArn"]["Fn::Join"][1][-1]
        for name, each in found.items()
        if "Orders" in name and "SourceArn" in each["Properties"]
    ]
    assert len(sources) == 11
    assert sources.count("/*/*/*") == 1
    assert "/*/*/more/6" in sources
    assert not [source for source in sources if source in {"/*/*/more/7", "/*/*/more/9"}]
    (integration,) = {
        json.dumps(each["Properties"]["Target"])
        for each in own.resources("Api", ROUTE).values()
        if each["Properties"]["RouteKey"] != "ANY /health"
    }
    assert "Orders" in integration


# OpenAPI


def test_the_document_and_its_page_are_public_where_the_stage_says_so(
    local: Stage, prod: Stage
) -> None:
    """The function serves them by the same setting."""
    keys = {"GET /openapi.json", "GET /swagger"}
    found = {each["Properties"]["RouteKey"]: each for each in local.all(ROUTE).values()}
    assert {found[key]["Properties"]["AuthorizationType"] for key in keys} == {"NONE"}
    assert local.functions()["users"]["Environment"]["Variables"]["API_OPENAPI"] == "1"
    assert not keys & {each["Properties"]["RouteKey"] for each in prod.all(ROUTE).values()}
    assert "API_OPENAPI" not in json.dumps(prod.templates["Api"])


# What functions get


def test_functions_get_the_rules_that_differ_from_the_default(prod: Stage) -> None:
    """All that connect, and no variable otherwise."""
    assert "LAMBDA_PG_API_" not in json.dumps(dict(prod.templates))
    strict = synthesise_once("dev", {"api": {"require_if_match": True, "max_body": 2048}})
    for name in ("users", "health"):
        variables = strict.functions()[name]["Environment"]["Variables"]
        told = {key: value for key, value in variables.items() if "LAMBDA_PG_API" in key}
        assert told == {"LAMBDA_PG_API_MAX_BODY": "2048", "LAMBDA_PG_API_REQUIRE_IF_MATCH": "1"}


# CORS


def cors_of(stage: Stage) -> dict[str, Any] | None:
    """Read the CORS configuration of the stage's own API."""
    found = [
        each["Properties"]
        for each in stage.resources("Api", "AWS::ApiGatewayV2::Api").values()
        if "by token" not in each["Properties"]["Description"]
    ]
    (properties,) = found
    configuration: dict[str, Any] | None = properties.get("CorsConfiguration")
    return configuration


def test_cors_is_closed_unless_a_setting_opens_it(apps: Mapping[str, Stage]) -> None:
    """In every stage and combination; the API of `/sql` for tokens has none."""
    opened = {name: cors["AllowOrigins"] for name in apps if (cors := cors_of(apps[name]))}
    pages = ["https://www.example.com"]
    assert opened == {
        "instance-pgbouncer-without-nat": pages,
        "instance-pgbouncer-bastion-with-sql": pages,
    }
    for name in apps:
        for each in apps[name].all("AWS::ApiGatewayV2::Api").values():
            if "by token" in each["Properties"]["Description"]:
                assert "CorsConfiguration" not in each["Properties"]


def test_pages_of_the_origins_may_use_the_api_without_cookies() -> None:
    """With the headers that `lambda_pg.http_api` reads and writes."""
    opened = synthesise_once("dev", {"api": {"origins": PAGES}})
    assert cors_of(opened) == {
        "AllowOrigins": PAGES,
        "AllowMethods": ["DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"],
        "AllowHeaders": [
            *("authorization", "content-type", "idempotency-key", "if-match", "if-none-match"),
        ],
        "ExposeHeaders": ["etag", "idempotent-replayed", "location", "retry-after"],
        "MaxAge": 86400,
    }


def test_no_guarded_route_of_the_sample_takes_a_preflight_request() -> None:
    """Its answer would be 401: each other method has a route, and API Gateway answers OPTIONS."""
    for scopes in (True, False):
        opened = synthesise_once("dev", {"api": {"origins": PAGES}, "identity": {"scopes": scopes}})
        found = scopes_of(opened.all(ROUTE))
        methods = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        paths = {key.partition(" ")[2] for key in SAMPLE}
        assert set(found) == {f"{method} {path}" for method in methods for path in paths}
        both = ["users:read", "users:write"]
        wanted = [found[key] for key in ("DELETE /users", "GET /users", "POST /users/{id}")]
        assert wanted == ([both, ["users:read"], both] if scopes else [None] * 3)


def test_pages_may_send_sql_its_headers() -> None:
    """API Gateway's answer replaces the function's, so it has all of them."""
    opened = synthesise_once(
        "local", {"api": {"origins": PAGES}, "sql": {"origins": PAGES, "jwt": True}}
    )
    cors = cors_of(opened)
    assert cors is not None
    assert set(SPOKEN) < set(cors["AllowHeaders"])
    assert {"authorization", "content-type"} < set(cors["AllowHeaders"])
