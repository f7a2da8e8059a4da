"""Find the route of a request, with API Gateway's order of preference."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from urllib.parse import unquote

from lambda_pg_cdk.local.deployment.deployed import Route


@dataclass(frozen=True, slots=True)
class Match:
    """A route, and the path parameters of the request that it matched."""

    route: Route
    parameters: Mapping[str, str]


def find_route(routes: Sequence[Route], method: str, path: str) -> Match | None:
    """Return the most specific route: full match before greedy before `$default`.

    Literal segments beat parameters, from left to right, and a named method beats ANY.
    """
    best: tuple[_Rule, Match] | None = None
    for route in routes:
        rule = _rule(route.key)
        if rule.method not in {"ANY", method} or (best and best[0].rank <= rule.rank):
            continue
        if found := rule.pattern.fullmatch(path):
            values = map(unquote, found.groups())
            best = rule, Match(route, dict(zip(rule.names, values, strict=True)))
    return best[1] if best else None


@dataclass(frozen=True, slots=True)
class _Rule:
    """A parsed route key. The lowest rank is the most specific."""

    method: str
    pattern: re.Pattern[str]
    names: tuple[str, ...]
    rank: tuple[int, tuple[int, ...], bool]


@cache
def _rule(key: str) -> _Rule:
    if key == "$default":
        return _Rule("ANY", re.compile(r"(?s:.*)"), (), (2, (), True))
    method, _, template = key.partition(" ")
    parts = template.split("/")
    segments = tuple(2 if part.endswith("+}") else int(part.startswith("{")) for part in parts)
    return _Rule(
        method,
        re.compile("/".join(map(_segment, parts))),
        tuple(re.findall(r"\{([^}+]+)\+?\}", template)),
        (int(2 in segments), segments, method == "ANY"),
    )


def _segment(part: str) -> str:
    if part.endswith("+}"):
        return "(.+)"
    return "([^/]+)" if part.startswith("{") else re.escape(part)
