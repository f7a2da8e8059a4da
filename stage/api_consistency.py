"""Check the HTTP API's settings against the others, after each has been checked alone. Pure."""

from collections.abc import Iterator

from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.messages import problem, shown

DEFAULT_PORTS = {"http": "80", "https": "443"}
"""Ports that browsers leave out of an origin (RFC 6454, 6.1)."""


def api_inconsistencies(config: Config) -> Iterator[str]:
    """Yield a message for each inconsistency: the setting, its value and what must hold."""
    yield from _origins(config)
    if config.api.openapi and not config.sample_api:
        yield problem(
            "api.openapi",
            True,
            "be false without sample_api: the sample function 'users' serves the document",
        )


def _origins(config: Config) -> Iterator[str]:
    """Check the origins, which API Gateway compares with a browser's letter by letter."""
    origins, sql = config.api.origins, config.sql
    if len(set(origins)) < len(origins):
        yield problem("api.origins", origins, "have each origin once")
    if "*" in origins and len(set(origins)) > 1:
        yield problem("api.origins", origins, "have '*' alone: it stands for every origin")
    for origin in origins:
        sent = _sent(origin)
        if origin != sent:
            yield problem("api.origins", origins, f"have {sent!r}, as browsers send {origin!r}")
    if sql.enabled and origins and set(origins) != set(sql.origins):
        yield problem(
            "api.origins",
            origins,
            f"be the same as sql.origins ({shown(sql.origins)}) with sql.enabled true: API"
            " Gateway's headers replace those of the function `sql`",
        )


def _sent(origin: str) -> str:
    """Return an origin as a browser sends it: in lower case, without the scheme's port."""
    scheme, _, _ = origin.partition(":")
    return origin.lower().removesuffix(f":{DEFAULT_PORTS.get(scheme.lower(), '')}")
