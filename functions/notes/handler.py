"""The second sample API: notes, with `lambda_pg.http_api` and no framework."""

from typing import Any

from lambda_pg import Database
from lambda_pg.http_api import Answer, Problem, Request, change_once, http_handler
from psycopg import Connection
from psycopg.rows import DictRow, dict_row

db = Database.from_env(row_factory=dict_row)


def create_note(request: Request) -> Answer:
    """Create a note that belongs to the caller: once for each Idempotency-Key."""
    text = text_of(request.json())

    def insert(connection: Connection[DictRow]) -> Answer:
        statement = "INSERT INTO notes (text) VALUES (%s) RETURNING id, text, created_at, version"
        [note] = connection.execute(statement, (text,)).fetchall()
        place = {"Location": f"/notes/{note['id']}"}
        return Answer(201, note, place, version=note["version"])

    return change_once(db, request, insert)


def get_note(request: Request) -> Answer:
    """Return a note, or 304 to a client that has it; another owner's note is not found."""
    statement = (
        "SELECT id, text, created_at, version FROM notes"
        " WHERE id = %(id)s AND owner = %(owner)s"  # as row-level security says, too
    )
    claims = request.claims
    mine = {"id": request.uuid("id"), "owner": claims["sub"]}
    note = db.execute(statement, mine, claims=claims, idempotent=True).fetchone()
    if note is None:
        raise Problem("not-found", "There is no such note.")
    if request.has_version(note["version"]):
        return Answer.not_modified(note["version"])
    return Answer(200, note, version=note["version"])


def text_of(fields: Any) -> str:
    """Return the text of a body. Raises Problem: 422, with what is wrong with each field."""
    found = fields if isinstance(fields, dict) else {}
    text = found.get("text")
    errors = [{"field": name, "detail": "is not known"} for name in found if name != "text"]
    # PostgreSQL's text cannot hold NUL.
    if not isinstance(text, str) or not 1 <= len(text) <= 1000 or "\0" in text:
        errors.append({"field": "text", "detail": "must be 1 to 1,000 characters without NUL"})
    if errors:
        raise Problem("invalid-fields", 'The body must be {"text": "..."}.', errors=errors[:20])
    return str(text)


handler = db.bind_lambda_context(
    http_handler({"POST /notes": create_note, "GET /notes/{id}": get_note})
)
