"""The PG* and LAMBDA_PG_* variables of a function that connects. Pure: no CDK.

Values that only the deployment knows are CDK's tokens, which are strings.
"""


def environment(  # noqa: PLR0913 - one for each variable, all optional
    *,
    application: str | None = None,
    checkout_timeout: int | None = None,
    host: str | None = None,
    port: str | None = None,
    database: str | None = None,
    profile: str | None = None,
    secret_arn: str | None = None,
    token_user: str | None = None,
    by_token: bool = False,
    ca_pem: str | None = None,
    ca_file: str | None = None,
    slots: int | None = None,
    strict: bool = False,
) -> dict[str, str]:
    """Return the variables for what is given; the layer has defaults for the others.

    `application` is any name, and is written in lower case. `checkout_timeout` is in seconds. With
    `token_user` the function logs in with a token of its role, without it by `secret_arn`; with
    `by_token` it has several users and says which itself. Where the secret has a URL, the URL says
    the endpoint.
    """
    values = {
        "PGAPPNAME": application and application.lower(),
        "PGHOST": host,
        "PGPORT": port,
        "PGDATABASE": database,
        "PGSSLMODE": host and "verify-full",
        "PGSSLROOTCERT": ca_file,
        "PGUSER": token_user,
        "LAMBDA_PG_AUTH": "iam" if token_user or by_token else None,
        "LAMBDA_PG_SECRET_ARN": secret_arn,
        "LAMBDA_PG_CA_PEM": ca_pem,
        "LAMBDA_PG_PROFILE": profile,
        "LAMBDA_PG_CHECKOUT_TIMEOUT": checkout_timeout,
        "LAMBDA_PG_SLOTS": slots,
        "LAMBDA_PG_STRICT": "1" if strict else None,
    }
    return {name: str(value) for name, value in values.items() if value is not None}
