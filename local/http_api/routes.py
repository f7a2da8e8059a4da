"""Find the route of a request, in the order in which API Gateway prefers them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from urllib.parse import unquote

from local.deployed import Route


@dataclass(frozen=True, slots=True)
class Match:
    """A route, and the path parameters of the request that it matched."""

    route: Route
    parameters: Mapping[str, str]


def find_route(routes: Sequence[Route], method: str, path: str) -> Match | None:
    """Return the most specific route: full match before greedy before `$default`.

    Literal segments beat parameters from the left to the right, and a named method beats ANY.
    """
    matches = [
        (_rank(route, method), Match(route, parameters))
        for route in routes
        if (parameters := _match(route.key, method, path)) is not None
    ]
    return min(matches, key=lambda ranked: ranked[0])[1] if matches else None


def _match(key: str, method: str, path: str) -> dict[str, str] | None:
    if key == "$default":
        return {}
    wanted, _, template = key.partition(" ")
    if wanted not in {"ANY", method}:
        return None
    found = _pattern(template).fullmatch(path)
    if found is None:
        return None
    names = re.findall(r"\{([^}+]+)\+?\}", template)
    return {name: unquote(value) for name, value in zip(names, found.groups(), strict=True)}


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile("/".join(_segment(part) for part in template.split("/")))


def _segment(part: str) -> str:
    if part.endswith("+}"):
        return "(.+)"
    return "([^/]+)" if part.startswith("{") else re.escape(part)


def _rank(route: Route, method: str) -> tuple[object, ...]:
    if route.key == "$default":
        return (2, (), 1)
    named, _, template = route.key.partition(" ")
    segments = tuple(
        2 if part.endswith("+}") else 1 if part.startswith("{") else 0
        for part in template.split("/")
    )
    return (int(2 in segments), segments, int(named != method))
