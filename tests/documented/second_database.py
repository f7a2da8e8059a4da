from dataclasses import replace
from os import environ

from lambda_pg import Database, Settings

settings = Settings.from_env()
db = Database(settings)  # the stage's, through the pooler
host, port = environ["REPORTS_HOST"], int(environ["REPORTS_PORT"])
secret = environ.get("REPORTS_SECRET_ARN")  # none on a laptop: then the login is the first one's
# Without a CA, the roots are RDS's.
direct = replace(settings, host=host, port=port, secret_arn=secret, profile="direct", ca_pem=None)
reports = Database(replace(direct, dbname=environ["REPORTS_DATABASE"]))


@db.bind_lambda_context
@reports.bind_lambda_context
def handler(event, context):
    (total,) = db.execute("SELECT sum(total) FROM orders", idempotent=True).fetchone()
    reports.execute("INSERT INTO totals VALUES (%s)", (total,))
