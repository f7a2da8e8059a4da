"""The function `health`, whose folder is on the path: a start's first answer."""

import time

from handler import handler  # type: ignore[import-not-found]  # its folder is on the path


class Context:
    """The part of a Lambda context that the layer reads."""

    deadline = time.time() + 25

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds until Lambda would end the function."""
        return int((self.deadline - time.time()) * 1000)


answer = handler({"requestContext": {"http": {"method": "GET"}}}, Context())
finished = time.monotonic_ns()

from finish import report  # noqa: E402 - after the measurement

report(finished, answer["statusCode"])
