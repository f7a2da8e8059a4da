"""The SSM parameters in which a stage publishes what others need to connect.

`functions/NAME` (the names of an app's functions) and `layer/pythonX.Y/arn` (the layers of a stage
with several Python versions) depend on the app and on the settings; all others have a table here.
"""

from lambda_pg_cdk.migrations.level_names import LEVELS
from lambda_pg_cdk.stage.config import Config

FOR_CLIENTS = {
    "layer/arn": "newest version of the layer lambda_pg",
    "pooler/host": "name of the pooler, as its certificate has it",
    "pooler/port": "port of the pooler",
    "pooler/profile": "what the pooler is, for LAMBDA_PG_PROFILE",
    "pooler/ca": "CA of PgBouncer's certificate, PEM; two during a renewal",
    "pooler/security-group": "group that lets clients in on the pooler's port",
    "pooler/secret-arn": "secret that functions log in with",
    "pooler/key-arn": "customer's key that the secret is encrypted with",
    "pooler/user": "user that functions log in as with a token of their role",
    "pooler/connect-arn": "what rds-db:connect has to allow for that user",
    "database/name": "name of the database",
    "network/vpc": "VPC of pooler and functions",
    "network/subnets": "private subnets for functions",
}
"""Values that functions of any app need; the stage's pooler decides which of them exist."""

FOR_SQL = {
    "sql/keys-secret-arn": "secret with the table of /sql's keys",
    "sql/token-api-id": "HTTP API of /sql for callers with a token",
    **{
        f"sql/{role}/{value}": text.format(role)
        for role in LEVELS
        for value, text in (
            ("secret-arn", "secret of /sql's {}"),
            ("connect-arn", "what rds-db:connect has to allow for /sql's {}"),
        )
    },
}
"""Values that exist only where the settings have sql.enabled."""

FOR_THE_APP = {
    "api/id": "HTTP API of the stage, for routes in other stacks of its app",
    "api/authorizer-id": "authorizer of these routes",
}
"""Values that exist only if a stack of the stage's own app needs them."""

PARAMETERS = {
    **FOR_CLIENTS,
    "database/host": "direct address of the database",
    "database/port": "port of the database",
    "database/owner-secret-arn": "secret of the database's owner, for migrations and rotation",
    "database/security-group": "group that lets clients in on the database's port",
    "database/application-secret-arn": "secret of the application's user",
    "database/rotation-function": "function that rotates it",
    "database/identifier": "name of the DB instance or cluster",
    "database/resource-id": "what IAM policies call it",
    "pooler/cluster": "ECS cluster of PgBouncer, for its metrics",
    "pooler/service": "ECS service of PgBouncer",
    "pooler/load-balancer": "its load balancer, as metrics name it",
    "pooler/target-group": "its target group, as metrics name it",
    "pooler/certificate-function": "function that renews its certificate",
    "pooler/proxy": "name of the RDS Proxy",
    "identity/scopes-function": "function that puts scopes into Cognito's tokens",
    "network/bastion": "instance through which Session Manager reaches the database",
    "network/endpoints": "group of the interface endpoints, where there is no NAT",
}
"""The values that every stage may publish. The texts are descriptions in the templates."""


def description_of(value: str) -> str:
    """Describe a published value: one of the tables, a function's name, or one more layer."""
    kind, _, rest = value.partition("/")
    if kind == "functions":
        return f"function {rest} of the stage's app"
    for table in (FOR_THE_APP, FOR_SQL):
        if value in table:
            return table[value]
    if value in PARAMETERS:
        return PARAMETERS[value]
    return f"newest version of the layer lambda_pg for {rest.partition('/')[0]}"


def parameter_name(config: Config, value: str) -> str:
    """Return the full name of a published value."""
    return f"/{config.app}/{config.stage}/{value}"


def configured_values(config: Config) -> dict[str, str]:
    """Return the values that the settings already have."""
    existing, values = config.database.existing, {"database/name": config.database.name}
    if config.pooler == "external":
        values["pooler/secret-arn"] = str(config.external.secret_arn)
    else:
        values["pooler/port"] = str(config.pooler_port)
    if config.pooler == "pgbouncer":
        values["pooler/host"] = config.pooler_name
    if config.database.kind == "existing":
        values |= {
            "database/host": str(existing.host),
            "database/port": str(existing.port),
            "database/owner-secret-arn": str(existing.secret_arn),
            "database/security-group": str(existing.security_group_id),
        }
    return values
