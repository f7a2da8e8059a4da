from dataclasses import replace
from os import environ

from lambda_pg import Database, Settings

settings = Settings.from_env()
db = Database(settings)
host, port = environ["REPLICA_HOST"], int(environ["REPLICA_PORT"])
replica = Database(replace(settings, host=host, port=port, profile="direct", ca_pem=None))
