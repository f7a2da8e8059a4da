"""What the layer logs: one structured event each, with the invocation it belongs to."""

import logging
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from lambda_pg._tracing import Tracing

logger: Final = logging.getLogger("lambda_pg")


class Events:
    """Log events of one Database; `context` is that of the invocation which runs, or None."""

    context: Any = None
    tracing: "Tracing | None" = None
    """What makes spans, where the program has OpenTelemetry; else None."""

    def __init__(self) -> None:
        """Start with nothing reported."""
        self._reported: set[str] = set()

    def report(self, level: int, event: str, message: str, *values: object) -> None:
        """Log `message % values` with `event` and `aws_request_id` as attributes of the record."""
        logger.log(
            level, message, *values, extra={"event": event, "aws_request_id": self.request_id}
        )
        self.mark(event)

    def mark(self, event: str) -> None:
        """Note an event in the span that is open, where there are spans."""
        if self.tracing is not None:
            self.tracing.event(event)

    def report_once(self, level: int, event: str, message: str) -> None:
        """Log an event unless this Database has done so before."""
        if event not in self._reported:
            self._reported.add(event)
            self.report(level, event, message)

    @property
    def request_id(self) -> str:
        """The id of the invocation, empty outside of one."""
        return str(getattr(self.context, "aws_request_id", ""))
