"""The floor: psycopg with credentials in environment variables, which libpq reads."""

import time

import psycopg

with psycopg.connect(autocommit=True) as connection:
    row = connection.execute("SELECT id, name FROM users WHERE id = %s", (7,)).fetchone()
    finished = time.monotonic_ns()

    from finish import report  # after the measurement

    report(finished, row)
