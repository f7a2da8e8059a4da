"""Passwords as Secrets Manager makes them for the project's stacks."""

import secrets
import string

from lambda_pg_cdk.pgbouncer.configuration import is_machine_made

LETTERS = string.ascii_letters + string.digits + "._"


def machine_made_password() -> str:
    """Make a password of 40 characters, with at least one of each kind."""
    while True:
        password = "".join(secrets.choice(LETTERS) for _ in range(40))
        if is_machine_made(password):
            return password
