"""Answer preflight requests and add CORS headers, from the API's configuration alone."""

from collections.abc import Mapping, Sequence

from lambda_pg_cdk.local.deployment.deployed import Cors
from lambda_pg_cdk.local.http_api.events import HttpResponse

PREFLIGHT = "OPTIONS"


def preflight(cors: Cors, headers: Mapping[str, str]) -> HttpResponse:
    """Answer an OPTIONS request that no route takes, as API Gateway does if CORS is configured."""
    return HttpResponse(204, allowed_headers(cors, PREFLIGHT, headers), b"")


def applied(
    cors: Cors, method: str, headers: Mapping[str, str], response: HttpResponse
) -> HttpResponse:
    """Replace the CORS headers of a function's response by the API's, as API Gateway does."""
    kept = [each for each in response.headers if not each[0].startswith("access-control-")]
    allowed = allowed_headers(cors, method, headers)
    return HttpResponse(response.status, [*kept, *allowed], response.body)


def allowed_headers(
    cors: Cors, method: str, headers: Mapping[str, str]
) -> Sequence[tuple[str, str]]:
    """Return the headers for a request's origin.

    There are none if the origin is not allowed, or if an OPTIONS request names no method.
    """
    origin, is_preflight = headers.get("origin"), method == PREFLIGHT
    if origin is None or not allows(cors, origin):
        return []
    if is_preflight and "access-control-request-method" not in headers:
        return []
    anyone = "*" in cors.origins and not cors.credentials
    found = [("access-control-allow-origin", "*" if anyone else origin)]
    if cors.credentials:
        found.append(("access-control-allow-credentials", "true"))
    if is_preflight:
        found.append(("access-control-allow-methods", ",".join(cors.methods)))
        found.append(("access-control-allow-headers", ",".join(cors.headers)))
        if cors.max_age is not None:
            found.append(("access-control-max-age", str(cors.max_age)))
    elif cors.exposed:
        found.append(("access-control-expose-headers", ",".join(cors.exposed)))
    return found


def allows(cors: Cors, origin: str) -> bool:
    """Tell whether pages of an origin may read responses."""
    return any(
        pattern in {"*", origin} or (pattern.endswith("*") and origin.startswith(pattern[:-1]))
        for pattern in cors.origins
    )
