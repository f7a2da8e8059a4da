"""A function that uses the layer as the README shows."""

import time

from lambda_pg import Database

db = Database.from_env()


class Context:
    """The part of a Lambda context that the layer reads."""

    deadline = time.time() + 25

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds until Lambda would end the function."""
        return int((self.deadline - time.time()) * 1000)


@db.bind_lambda_context
def handler(event: dict[str, int], _: Context) -> object:
    """Look up the user that the event names."""
    return db.execute("SELECT id, name FROM users WHERE id = %s", (event["id"],)).fetchone()


row = handler({"id": 7}, Context())
finished = time.monotonic_ns()

from finish import report  # noqa: E402 - after the measurement

report(finished, row)
