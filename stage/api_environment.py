"""The LAMBDA_PG_API_* variables of functions, which `lambda_pg.http_api` reads. Pure: no CDK."""

from lambda_pg_cdk.stage.config import Api


def api_variables(api: Api) -> dict[str, str]:
    """Return the variables of the settings that differ from the defaults, which the layer has."""
    defaults = _all_variables(Api())
    return {name: text for name, text in _all_variables(api).items() if text != defaults[name]}


def _all_variables(api: Api) -> dict[str, str]:
    return {
        "LAMBDA_PG_API_MAX_BODY": str(api.max_body),
        "LAMBDA_PG_API_REQUIRE_IDEMPOTENCY_KEY": _switch(api.require_idempotency_key),
        "LAMBDA_PG_API_REQUIRE_IF_MATCH": _switch(api.require_if_match),
        "LAMBDA_PG_API_PROBLEM_TYPES": api.problem_types,
    }


def _switch(value: bool) -> str:
    return "1" if value else "0"
