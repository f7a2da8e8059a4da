"""One convention each for constants, `Raises`, `noqa`, `from __future__` and large classes."""

import ast
import builtins
import re
from collections.abc import Callable, Iterator

import pytest

from tests.support.modules import MODULES, SOURCES, parsed

METHODS, ATTRIBUTES = 20, 12
"""A class with more of them says in its docstring why: "Large because …"."""

MARK = "# " + "noqa"
NOQA = re.compile(rf"{MARK}(?!: [A-Z]+\d+(, [A-Z]+\d+)* - \S)")
"""A comment that silences the linter in another form than `noqa: S101 - the reason`."""

RAISES = re.compile(r"(?<![.!?`)] )(?<!^)\bRaises\b|\braises [A-Z`]")
"""A docstring names errors inside another sentence. The sentence should begin with Raises."""


def undocumented_constants(tree: ast.Module, lines: list[str]) -> Iterator[str]:
    """Find constants with a comment above them; the text belongs below, into a docstring."""
    for node in tree.body:
        is_constant = isinstance(node, ast.AnnAssign) and "Final" in ast.unparse(node.annotation)
        if is_constant and lines[node.lineno - 2].startswith("#"):
            yield f"{node.lineno}: a comment above a constant"


def raises_inside(tree: ast.Module, _: list[str]) -> Iterator[str]:
    """Find docstrings that name an error in the middle of a sentence."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            text = " ".join((ast.get_docstring(node) or "").split())
            if RAISES.search(text):
                yield f"{node.lineno}: {node.name} names its errors inside a sentence"


def unexplained(_: ast.Module, lines: list[str]) -> Iterator[str]:
    """Find exceptions from the linter's rules that have no reason, or have it in another form."""
    yield from (
        f"{number}: {line.strip()}" for number, line in enumerate(lines, 1) if NOQA.search(line)
    )


def needless_future(tree: ast.Module, _: list[str]) -> Iterator[str]:
    """Find `from __future__ import annotations` where every annotation is defined before it."""
    futures = [
        node
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ]
    if futures and not _needs_future(tree):
        yield f"{futures[0].lineno}: no annotation needs it"


def _needs_future(tree: ast.Module) -> bool:
    known = set(dir(builtins))
    for statement in tree.body:
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            return True
        for annotation in _annotations(statement):
            names = {each.id for each in ast.walk(annotation) if isinstance(each, ast.Name)}
            if not names <= known:
                return True
        known |= {each for node in ast.walk(statement) for each in _defined(node)}
    return False


def _annotations(statement: ast.stmt) -> Iterator[ast.expr]:
    """Yield what Python evaluates when it defines a function or a class."""
    for node in ast.walk(statement):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = node.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            every += [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
            yield from (each.annotation for each in every if each.annotation is not None)
            if node.returns is not None:
                yield node.returns
        elif isinstance(node, ast.AnnAssign):
            yield node.annotation


def _defined(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id


def large_classes(tree: ast.Module, _: list[str]) -> Iterator[str]:
    """Find classes over the limits whose docstring does not say why."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            methods, attributes = _methods(node), _attributes(node)
            is_large = len(methods) > METHODS or len(attributes) > ATTRIBUTES
            if is_large and "Large because" not in (ast.get_docstring(node) or ""):
                count = f"{len(methods)} methods, {len(attributes)} attributes"
                yield f"{node.lineno}: {node.name} has {count}"


def _methods(node: ast.ClassDef) -> list[str]:
    functions = ast.FunctionDef, ast.AsyncFunctionDef
    return [each.name for each in node.body if isinstance(each, functions)]


def _attributes(node: ast.ClassDef) -> set[str]:
    declared = {
        each.target.id
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }
    return declared | {
        each.attr
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute)
        and isinstance(each.ctx, ast.Store)
        and isinstance(each.value, ast.Name)
        and each.value.id == "self"
    }


Check = Callable[[ast.Module, list[str]], Iterator[str]]

CHECKS: tuple[Check, ...] = (
    undocumented_constants,
    raises_inside,
    unexplained,
    needless_future,
    large_classes,
)


def found(check: Check, source: str) -> list[str]:
    """List what a check finds in a module."""
    return list(check(parsed(source), source.splitlines()))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_convention_holds(check: Check) -> None:
    """In every module of the project."""
    wrong = {
        str(MODULES[name]): faults
        for name, source in SOURCES.items()
        if (faults := found(check, source))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("check", "source"),
    [
        (undocumented_constants, "# Seconds.\nWAIT: Final = 1\n"),
        (raises_inside, 'def f():\n    """Read it; raises OSError."""\n'),
        (raises_inside, 'def f():\n    """Read it, and Raises OSError."""\n'),
        (unexplained, f"import os  {MARK}: F401\n"),
        (unexplained, f"import os  {MARK}\n"),
        (unexplained, f"import os  {MARK}: F401  # for its effects\n"),
        (needless_future, "from __future__ import annotations\ndef f(a: int) -> str: ...\n"),
        (large_classes, "class C:\n" + "".join(f"    a{n}: int\n" for n in range(13))),
        (large_classes, "class C:\n" + "".join(f"    def m{n}(self): ...\n" for n in range(21))),
    ],
)
def test_a_breach_is_found(check: Check, source: str) -> None:
    """Each check finds what it is for."""
    assert found(check, source)


@pytest.mark.parametrize(
    ("check", "source"),
    [
        (undocumented_constants, 'WAIT: Final = 1\n"""Seconds."""\n'),
        (raises_inside, 'def f():\n    """Read it. Raises OSError, and a second error."""\n'),
        (raises_inside, 'def f():\n    """Raises OSError."""\n'),
        (unexplained, f"import os  {MARK}: F401, E402 - for its effects\n"),
        (needless_future, "from __future__ import annotations\nclass C:\n    a: C\n"),
        (large_classes, "class C:\n" + "".join(f"    a{n}: int\n" for n in range(12))),
    ],
)
def test_what_follows_the_convention_passes(check: Check, source: str) -> None:
    """A check that finds everything would hold nothing."""
    assert found(check, source) == []
