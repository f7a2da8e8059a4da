"""The usual way, the control: boto3's client for the secret, psycopg_pool for the connection."""

import json
import os
import time

import boto3
from psycopg_pool import ConnectionPool

secrets = boto3.client("secretsmanager")
answer = secrets.get_secret_value(SecretId=os.environ["LAMBDA_PG_SECRET_ARN"])
login = json.loads(answer["SecretString"])
arguments = {"user": login["username"], "password": login["password"]}

with ConnectionPool(kwargs=arguments, min_size=1, open=True) as pool:
    with pool.connection() as connection:
        row = connection.execute("SELECT id, name FROM users WHERE id = %s", (7,)).fetchone()
    finished = time.monotonic_ns()

    from finish import report  # after the measurement

    report(finished, row)
