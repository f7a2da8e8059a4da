"""A handler under OpenTelemetry's SDK, called three times; its spans go to standard output."""

from contextlib import closing
from typing import Any

import psycopg
from lambda_pg import Database
from lambda_pg.testing import LambdaContext
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from psycopg.conninfo import make_conninfo

SELECT = "SELECT name FROM users WHERE id = %s"
RENAME = "UPDATE users SET name = %s WHERE id = %s"


def _as_line(span: ReadableSpan) -> str:
    return f"{span.to_json(indent=None)}\n"


provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=_as_line)))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("handler")
db = Database.from_env()


@db.bind_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> Any:
    """Read a user, and rename it where the event has a name."""
    with tracer.start_as_current_span("invocation"):
        row = db.execute(SELECT, (event["id"],), claims={"sub": "a"}).fetchone()
        if "name" in event:
            with db.transaction() as connection:
                connection.execute(SELECT + " FOR UPDATE", (event["id"],))
                connection.execute(RENAME, (event["name"], event["id"]))
        return row


def main() -> None:
    """Call it cold, warm, and while another client uses the only server connection."""
    handler({"id": 1}, LambdaContext())
    handler({"id": 1, "name": "Ann"}, LambdaContext())
    with db.connection() as connection:
        info = connection.info
        conninfo = make_conninfo("", password=info.password, **info.get_parameters())
    with closing(psycopg.connect(conninfo, autocommit=True)) as other:
        other.pgconn.send_query(b"SELECT pg_sleep(0.05)")
        other.pgconn.flush()
        handler({"id": 1}, LambdaContext())


if __name__ == "__main__":
    main()
