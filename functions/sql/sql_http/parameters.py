"""Parameters: JSON to PostgreSQL's text."""

import json
from collections.abc import Sequence
from typing import Any, NoReturn

from .errors import RequestError


class Number(str):
    """A number as it was written: a float would lose digits, and an int may not have 10,000."""

    __slots__ = ()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_float=Number, parse_int=Number, parse_constant=_refuse)


def read_json(text: str) -> Any:
    """Parse JSON, with numbers as Number. Raises RequestError."""
    try:
        return _decoded(text)
    except RecursionError:
        raise RequestError("the JSON of the body is nested too deeply") from None
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}") from None


def _decoded(text: str) -> Any:
    """Parse without a search for white space around the document, where there is none."""
    try:
        document, end = _DECODER.raw_decode(text)
    except json.JSONDecodeError:
        end = -1
    return document if end == len(text) else _DECODER.decode(text)


def as_texts(values: Sequence[Any]) -> tuple[str | None, ...]:
    """Turn parameters into PostgreSQL's text. Raises RequestError."""
    try:
        return tuple([each if each.__class__ is str else _text(each) for each in values])
    except RecursionError:
        raise RequestError("the JSON of a parameter is nested too deeply") from None


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return _array(value) if isinstance(value, list) else _plain(value)


def _plain(value: Any) -> str:
    """Return a string or a number as it is, anything else as its JSON text."""
    return str(value) if isinstance(value, str) else _json(value)


def _array(values: list[Any]) -> str:
    """Write an array's literal."""
    return f"{{{','.join(map(_element, values))}}}"


def _element(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, list):
        return _array(value)
    if isinstance(value, Number | bool):
        return _plain(value)
    escaped = _plain(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _json(value: Any) -> str:
    """Write JSON with every number as it was."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, list):
        return f"[{','.join(map(_json, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join([f'{_json(name)}:{_json(each)}' for name, each in value.items()])}}}"
    return json.dumps(value, ensure_ascii=False)
