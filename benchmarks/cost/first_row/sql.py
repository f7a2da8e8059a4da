"""The function `sql`, whose folder is on the path: a start's first answer to a lookup."""

import os
import time

from handler import handler  # type: ignore[import-not-found]  # its folder is on the path


class Context:
    """The part of a Lambda context that the layer reads."""

    deadline = time.time() + 25

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds until Lambda would end the function."""
        return int((self.deadline - time.time()) * 1000)


EVENT = {
    "headers": {
        "neon-connection-string": os.environ["BENCHMARK_KEY"],
        "neon-raw-text-output": "true",
        "neon-array-mode": "true",
    },
    "body": '{"query": "SELECT id, name FROM users WHERE id = $1", "params": ["7"]}',
    "requestContext": {"domainName": "127.0.0.1", "http": {"method": "POST"}},
}

answer = handler(EVENT, Context())
finished = time.monotonic_ns()

from finish import report  # noqa: E402 - after the measurement

report(finished, answer["statusCode"])
