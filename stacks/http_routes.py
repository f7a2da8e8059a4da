"""Routes of the HTTP API, each in the stack of the function that it leads to."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from aws_cdk import Duration, Stack
from aws_cdk import aws_apigatewayv2 as api
from aws_cdk import aws_apigatewayv2_integrations as integrations
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from constructs import Construct

from lambda_pg_cdk.stacks.identity import Identity, route_authorizer
from lambda_pg_cdk.stacks.nag_exceptions import suppress
from lambda_pg_cdk.stacks.published import published
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.consistency import API_TIMEOUT
from lambda_pg_cdk.stage.messages import problem

METHODS = ("ANY", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")

_SEGMENT = r"/([\w.~!$&'()*,;=:@%-]+|\{\w+\})"
PATH = re.compile(rf"/|({_SEGMENT})*({_SEGMENT}|/\{{\w+\+\}})", re.ASCII)
"""Segments are text or a parameter; the last one may be a parameter for the rest of the path."""

SCOPE = re.compile(r"[!#-\[\]-~]{1,64}")
"""A scope as RFC 6749 (3.3) has it, and as long as API Gateway takes (its AuthorizationScopes)."""

MOST_SCOPES = 10
"""Scopes that a route of an HTTP API may have: a quota of API Gateway."""

ROUTE_PERMISSIONS = 10
"""Routes of a function that each have a permission. About 30 would fill the 20,480 bytes of the
function's policy: https://github.com/aws/aws-cdk/issues/19535"""


def route_problems(route: str) -> Iterator[str]:
    """Yield what is wrong with a route, as in "GET /orders/{id}"."""
    method, _, path = route.partition(" ")
    names = re.findall(r"\{(\w+)\+?\}", path)
    if method not in METHODS or PATH.fullmatch(path) is None:
        yield problem(
            "the route",
            route,
            "be a method, a space and a path, as in 'GET /orders/{id}'. Methods:"
            f" {', '.join(METHODS)}. The path begins with / and does not end with one",
        )
    elif len(set(names)) < len(names):
        yield problem("the route", route, "have each parameter once")


def scope_problems(route: str, scopes: Sequence[str], *, public: bool) -> Iterator[str]:
    """Yield what is wrong with the scopes of a route."""
    name = f"the value of scopes for {route!r}"
    if isinstance(scopes, str):
        yield problem(name, scopes, f"be a list: [{scopes!r}]")
        return
    if public and scopes:
        yield problem(name, tuple(scopes), "be [] for a public route, which asks for no token")
    if len(scopes) > MOST_SCOPES:
        yield problem(name, tuple(scopes), f"have at most {MOST_SCOPES} (a quota of API Gateway)")
    if len(set(scopes)) < len(scopes):
        yield problem(name, tuple(scopes), "have each scope once")
    for scope in scopes:
        if SCOPE.fullmatch(scope) is None:
            must = "be 1 to 64 characters of ASCII without spaces, quotes and backslashes"
            yield problem(f"a scope of {route!r}", scope, must)


def preflight_problems(route: str, origins: Sequence[str]) -> Iterator[str]:
    """Yield that a route with an authorizer answers 401 to the preflight requests of browsers.

    API Gateway answers such a request itself unless a route matches it. The authorizer of that
    route then asks for a token, which no preflight request has.
    """
    method, _, path = route.partition(" ")
    if origins and method in {"ANY", "OPTIONS"}:
        yield problem(
            "the route",
            route,
            f"have another method with api.origins, as in 'GET {path}' and 'POST {path}': it"
            " matches the preflight requests of browsers, which have no token",
        )


def sample_routes(
    config: Config, path: str, scopes: Mapping[str, str]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the routes of a sample's path, each with its scopes.

    `scopes` has each method of the path and its scope. All other methods are routed too, so that
    the function answers them 405; they ask for one of the scopes of the path.
    """
    wanted = dict(scopes) if config.identity.scopes else {}
    others = tuple(dict.fromkeys(wanted.values()))
    methods = [each for each in METHODS if each not in {"ANY", "OPTIONS"}]
    for method in methods if config.api.origins else ["ANY", *wanted]:
        yield f"{method} {path}", (wanted[method],) if method in wanted else others


def same_requests(route: str) -> str:
    """Return a key that is equal for routes that match the same requests."""
    return re.sub(r"\{\w+(\+?)\}", r"{\1}", route)


@dataclass(frozen=True)
class _Place:
    """Where the routes of one stack are, and the API and its authorizer as it knows them."""

    scope: Construct
    http_api: api.IHttpApi
    authorizer: api.IHttpRouteAuthorizer


class HttpRoutes:
    """Adds routes to an HTTP API, from its own stack and from later ones.

    A route to a function of another stack is in that stack. In the API's stack it would make the
    API wait for the function, which waits for the migration in the API's stack. Such a stack reads
    the API's id from what is published: an export in use could not change.
    """

    def __init__(self, config: Config, http_api: api.HttpApi, identity: Identity) -> None:
        self._config = config
        self._stack = Stack.of(http_api)
        self._ids = {"api/id": http_api.api_id, "api/authorizer-id": identity.authorizer_id}
        self._places = {self._stack.node.path: _Place(http_api, http_api, identity.authorizer)}
        self._integrations: dict[str, integrations.HttpLambdaIntegration] = {}
        self._identity = identity
        self._permissions: Counter[tuple[str, str]] = Counter()

    def add(
        self,
        route: str,
        function: lambda_.IFunction,
        name: str,
        *,
        public: bool,
        scopes: Sequence[str] = (),
    ) -> api.HttpRoute:
        """Add a route that has no problems; `name` is the integration's id."""
        place = self._place(Stack.of(function))
        method, _, path = route.partition(" ")
        added = api.HttpRoute(
            place.scope,
            f"{method}{path}",
            http_api=place.http_api,
            route_key=api.HttpRouteKey.with_(path, api.HttpMethod[method]),
            integration=self._integration(function, name),
            authorizer=None if public else place.authorizer,
            authorization_scopes=list(scopes) or None,
        )
        self._identity.offer(scopes)
        self._limit_permissions(added, function, name)
        if public:
            suppress(added, APIG4="It is public on purpose: the app says so in its call.")
        return added

    def _limit_permissions(
        self, added: api.HttpRoute, function: lambda_.IFunction, name: str
    ) -> None:
        """Give later routes of a function one permission together, for the whole API."""
        of_function = (Stack.of(added).node.path, function.node.path)
        self._permissions[of_function] += 1
        if self._permissions[of_function] <= ROUTE_PERMISSIONS:
            return
        added.node.try_remove_child(f"{name}-Permission")
        if self._permissions[of_function] == ROUTE_PERMISSIONS + 1:
            function.add_permission(
                f"{name}-Api",
                scope=added,
                principal=iam.ServicePrincipal("apigateway.amazonaws.com"),
                source_arn=Stack.of(added).format_arn(
                    service="execute-api", resource=added.http_api.api_id, resource_name="*/*/*"
                ),
            )

    def _integration(
        self, function: lambda_.IFunction, name: str
    ) -> integrations.HttpLambdaIntegration:
        """Return the function's integration, which all of its routes share."""
        path = function.node.path
        if path not in self._integrations:
            self._integrations[path] = integrations.HttpLambdaIntegration(
                name,
                function,
                payload_format_version=api.PayloadFormatVersion.VERSION_2_0,
                timeout=Duration.seconds(API_TIMEOUT),
            )
        return self._integrations[path]

    def _place(self, stack: Stack) -> _Place:
        path = stack.node.path
        if path not in self._places:
            self._places[path] = self._place_in(stack)
        return self._places[path]

    def _place_in(self, stack: Stack) -> _Place:
        """Prepare another stack, which is then deployed after the API."""
        if len(self._places) == 1:
            for value, token in self._ids.items():
                published(self._config, value).write(self._stack, token)
        stack.add_stack_dependency(self._stack, reason="adds routes to its API")
        scope = Construct(stack, "LambdaPgRoutes")
        api_id, authorizer_id = (published(self._config, each).read(stack) for each in self._ids)
        http_api = api.HttpApi.from_http_api_attributes(scope, "Http", http_api_id=api_id)
        return _Place(scope, http_api, route_authorizer(scope, authorizer_id))
