"""The SQL_* variables of the function `sql` that the settings decide. Pure: no CDK."""

from lambda_pg_cdk.stage.config import Config


def sql_variables(config: Config) -> dict[str, str]:
    """Return the variables of those settings that have a value.

    SQL_DATABASE is the name in connection strings; PGDATABASE may be another, PgBouncer's second.
    """
    sql = config.sql
    values = {
        "SQL_DATABASE": config.database.name,
        "SQL_KEY_LIFETIME": sql.key_lifetime,
        "SQL_HOSTS": ",".join(sql.hosts) or None,
        "SQL_MAX_ROWS": sql.max_rows,
        "SQL_MAX_BYTES": sql.max_bytes,
        "SQL_MAX_STATEMENTS": sql.max_statements,
        "SQL_MAX_REQUEST_BYTES": sql.max_request_bytes,
        "SQL_GZIP": "1" if sql.gzip else None,
        "SQL_ORIGINS": ",".join(sql.origins) or None,
        "SQL_STATEMENTS": sql.statements,
    }
    return {name: str(value) for name, value in values.items() if value is not None}
