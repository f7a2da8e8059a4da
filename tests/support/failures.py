"""Errors as servers and poolers send them."""

import psycopg
from psycopg import errors
from psycopg.pq import DiagnosticField

AT = 'connection failed: connection to server at "127.0.0.1", port 5432 failed: '


def said(
    severity: str, sqlstate: str, text: str, *, server: bool = True, source: str = ""
) -> psycopg.Error:
    """Make the error that psycopg makes of a message; a pooler sends no untranslated severity."""
    fields: dict[int, bytes | None] = {
        DiagnosticField.SEVERITY: severity.encode(),
        DiagnosticField.SQLSTATE: sqlstate.encode(),
        DiagnosticField.MESSAGE_PRIMARY: text.encode(),
    }
    if source:
        fields[DiagnosticField.SOURCE_FUNCTION] = source.encode()
    if server:
        fields[DiagnosticField.SEVERITY_NONLOCALIZED] = severity.encode()
    try:
        kind = errors.lookup(sqlstate)
    except KeyError:
        kind = errors.get_base_exception(sqlstate)
    return kind(f"{severity}:  {text}", info=fields)


def pooler(sqlstate: str, text: str) -> psycopg.Error:
    """Refuse as a pooler does."""
    return said("FATAL", sqlstate, text, server=False)
