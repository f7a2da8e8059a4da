"""An HTTP API on PostgreSQL: requests, answers, problem details, entity tags, idempotency.

`import lambda_pg` imports nothing of it. docs/mutations.md is its page.
"""

from lambda_pg.http_api.answers import Answer
from lambda_pg.http_api.errors import StatementFailedError, answer_to
from lambda_pg.http_api.etags import etag
from lambda_pg.http_api.handler import http_handler
from lambda_pg.http_api.idempotency import change_once
from lambda_pg.http_api.problems import Problem
from lambda_pg.http_api.request import Request
from lambda_pg.http_api.rules import Rules

__all__ = [
    "Answer",
    "Problem",
    "Request",
    "Rules",
    "StatementFailedError",
    "answer_to",
    "change_once",
    "etag",
    "http_handler",
]
