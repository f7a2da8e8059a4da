"""Read the deployed HTTP APIs and their custom domain names from API Gateway."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from lambda_pg_cdk.local.deployment.deployed import (
    Api,
    Cors,
    CustomDomain,
    JwtAuthorizer,
    Route,
    Throttle,
)

FUNCTION: Final = re.compile(r":function:([A-Za-z0-9_-]+)(?::([A-Za-z0-9_-]+|\$LATEST))?")
"""The name and the qualifier of a function, in its ARN or in the URI of an integration."""


class HttpApis:
    """The HTTP APIs of the account, each with its first stage."""

    def __init__(self, client: Any) -> None:
        """Take a client of API Gateway V2."""
        self._client = client

    def read(self) -> tuple[tuple[Api, ...], dict[str, str]]:
        """Return the APIs, the oldest first, and the qualifiers that they call functions with."""
        found = [each for each in self._all("get_apis") if each["ProtocolType"] == "HTTP"]
        apis, qualifiers = [], dict[str, str]()
        for each in sorted(found, key=lambda api: str(api.get("CreatedDate", ""))):
            if stages := self._all("get_stages", ApiId=each["ApiId"]):
                integrations = self._by_id(each, "Integration")
                apis.append(self._api(each, stages[0], integrations))
                qualifiers = _qualifiers(integrations.values()) | qualifiers
        return tuple(apis), qualifiers

    def domains(self, apis: Iterable[Api]) -> tuple[CustomDomain, ...]:
        """Return the custom domain names that lead to these APIs."""
        return tuple(self._domains({api.id for api in apis}))

    def _domains(self, apis: set[str]) -> Iterator[CustomDomain]:
        for found in self._all("get_domain_names"):
            name = found["DomainName"]
            for mapping in self._all("get_api_mappings", DomainName=name):
                # A mapping with a key is for the paths below that key only; none is served here.
                if mapping["ApiId"] in apis and not mapping.get("ApiMappingKey"):
                    yield CustomDomain(name.lower(), mapping["ApiId"])

    def _api(
        self,
        found: Mapping[str, Any],
        stage: Mapping[str, Any],
        integrations: Mapping[str, Mapping[str, Any]],
    ) -> Api:
        authorizers = {
            id_: _authorizer(each)
            for id_, each in self._by_id(found, "Authorizer").items()
            if each["AuthorizerType"] == "JWT"
        }
        routes = [
            _route(each, integrations, authorizers, stage)
            for each in self._all("get_routes", ApiId=found["ApiId"])
            if _can_serve(each, integrations)
        ]
        cors = _cors(found["CorsConfiguration"]) if found.get("CorsConfiguration") else None
        name = found.get("Description") or found["Name"]
        return Api(found["ApiId"], stage["StageName"], tuple(routes), cors, name)

    def _by_id(self, api: Mapping[str, Any], kind: str) -> dict[str, dict[str, Any]]:
        found = self._all(f"get_{kind.lower()}s", ApiId=api["ApiId"])
        return {each[f"{kind}Id"]: each for each in found}

    def _all(self, operation: str, **asked: Any) -> list[dict[str, Any]]:
        """Return the items of all pages; boto3 has no paginator for API mappings."""
        ask, items, more = getattr(self._client, operation), list[dict[str, Any]](), dict(asked)
        while True:
            page = ask(**more)
            items += page.get("Items", [])
            if not (token := page.get("NextToken")):
                return items
            more = {**asked, "NextToken": token}


def function_name(uri: str) -> str:
    """Return the function's name from its ARN, or from the URI of an integration."""
    found = FUNCTION.search(uri)
    return found[1] if found else uri


def _qualifiers(integrations: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the alias or version of each function that an integration calls with one."""
    found = [FUNCTION.search(each.get("IntegrationUri", "")) for each in integrations]
    return {each[1]: each[2] for each in found if each and each[2]}


def _authorizer(found: Mapping[str, Any]) -> JwtAuthorizer:
    settings = found["JwtConfiguration"]
    return JwtAuthorizer(settings["Issuer"], tuple(settings["Audience"]))


def _can_serve(route: Mapping[str, Any], integrations: Mapping[str, Mapping[str, Any]]) -> bool:
    """Tell whether a route leads to a function, and has no authorizer or one that checks a JWT."""
    integration = integrations.get(route.get("Target", "").removeprefix("integrations/"), {})
    return integration.get("IntegrationType") == "AWS_PROXY" and route.get(
        "AuthorizationType", "NONE"
    ) in {"NONE", "JWT"}


def _route(
    found: Mapping[str, Any],
    integrations: Mapping[str, Mapping[str, Any]],
    authorizers: Mapping[str, JwtAuthorizer],
    stage: Mapping[str, Any],
) -> Route:
    integration = integrations[found["Target"].removeprefix("integrations/")]
    guarded = found.get("AuthorizationType") == "JWT"
    limits = {
        **stage.get("DefaultRouteSettings", {}),
        **stage.get("RouteSettings", {}).get(found["RouteKey"], {}),
    }
    return Route(
        key=found["RouteKey"],
        function=function_name(integration["IntegrationUri"]),
        payload_format=integration.get("PayloadFormatVersion", "2.0"),
        timeout=integration.get("TimeoutInMillis", 30_000) / 1000,
        authorizer=authorizers[found["AuthorizerId"]] if guarded else None,
        scopes=tuple(found.get("AuthorizationScopes") or ()),
        throttle=Throttle(
            float(limits.get("ThrottlingRateLimit", 0)), int(limits.get("ThrottlingBurstLimit", 0))
        ),
    )


def _cors(found: Mapping[str, Any]) -> Cors:
    return Cors(
        origins=tuple(found.get("AllowOrigins", ())),
        methods=tuple(found.get("AllowMethods", ())),
        headers=tuple(found.get("AllowHeaders", ())),
        exposed=tuple(found.get("ExposeHeaders", ())),
        max_age=found.get("MaxAge"),
        credentials=bool(found.get("AllowCredentials", False)),
    )
