"""Which pages of browsers may use the HTTP API: API Gateway answers for all functions behind it."""

from aws_cdk import Duration
from aws_cdk import aws_apigatewayv2 as api

from lambda_pg_cdk.stage.config import Config

ALLOWED = ("authorization", "content-type", "idempotency-key", "if-match", "if-none-match")
EXPOSED = ("etag", "idempotent-replayed", "location", "retry-after")
"""Headers that a page may send, and those of an answer that it may read."""

OF_SQL = (
    *("neon-array-mode", "neon-batch-deferrable", "neon-batch-isolation-level"),
    *("neon-batch-read-only", "neon-connection-string", "neon-raw-text-output"),
)
"""Headers that pages send to `/sql`, as sql_http/answers.py has them."""

METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")


def cors_of(config: Config) -> api.CorsPreflightOptions | None:
    """Return the API's CORS configuration; None leaves it closed.

    Credentials are never allowed: no function reads a cookie.
    """
    if not config.api.origins:
        return None
    of_sql = OF_SQL if config.sql.enabled else ()
    return api.CorsPreflightOptions(
        allow_origins=list(config.api.origins),
        allow_methods=[api.CorsHttpMethod[method] for method in METHODS],
        allow_headers=[*ALLOWED, *of_sql],
        expose_headers=list(EXPOSED),
        max_age=Duration.days(1),
    )
