"""What the layer logs: one structured event each, with the invocation it belongs to."""

import logging
from typing import Any, Final

logger: Final = logging.getLogger("lambda_pg")


class Events:
    """Log events of one Database; `context` is that of the invocation which runs, or None."""

    context: Any = None

    def __init__(self) -> None:
        """Start with nothing reported."""
        self._reported: set[str] = set()

    def report(self, level: int, event: str, message: str, *values: object) -> None:
        """Log `message % values` with `event` and `aws_request_id` as attributes of the record."""
        logger.log(
            level, message, *values, extra={"event": event, "aws_request_id": self.request_id}
        )

    def report_once(self, level: int, event: str, message: str) -> None:
        """Log an event unless this Database has done so before."""
        if event not in self._reported:
            self._reported.add(event)
            self.report(level, event, message)

    @property
    def request_id(self) -> str:
        """The id of the invocation, empty outside of one."""
        return str(getattr(self.context, "aws_request_id", ""))
