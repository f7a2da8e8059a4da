"""Collect the errors of an app, each with the line of the app that it is about."""

import atexit
import inspect
import os
import sys
from collections.abc import Iterable

import jsii
from constructs import IConstruct, IValidation

VERBS = __name__.rpartition(".")[0]
"""The package of the verbs: an error is about the line outside of it that calls a verb."""


class AppError(SystemExit):
    """The app has errors; the message lists all of them.

    A program that does not catch it prints the message and ends with exit code 1.
    """


class Problems:
    """The errors that an app has had so far.

    `AppError` reports them all. If the CDK writes the templates, or the program ends because of
    another error, they are reported then.
    """

    def __init__(self, root: IConstruct) -> None:
        self._found: list[str] = []
        self._reported = True
        root.node.add_validation(_Validation(self))
        atexit.register(self._report_late)

    def add(self, texts: Iterable[str]) -> bool:
        """Add errors of the line that calls a verb; tell whether there was one."""
        place = calling_line()
        found = [f"{place}: {text}".replace("\n", "\n    ") for text in texts]
        self._found += found
        self._reported = self._reported and not found
        return bool(found)

    def check(self) -> None:
        """Raise `AppError` if there were errors."""
        if self._found:
            raise self.error()

    def error(self) -> AppError:
        """Return all errors as one."""
        return AppError(_listed(self.report()))

    def report(self) -> list[str]:
        """Return the errors, to be shown now."""
        self._reported = True
        return list(self._found)

    def _report_late(self) -> None:
        if not self._reported:
            print(_listed(self.report()), file=sys.stderr)


def calling_line() -> str:
    """Return the file and the line of the app that calls a verb, as in "app.py:7"."""
    frame = inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__")).startswith(f"{VERBS}."):
        frame = frame.f_back
    return f"{_shown(frame.f_code.co_filename)}:{frame.f_lineno}" if frame else "the app"


def _shown(file: str) -> str:
    """Shorten the path of a file below the current folder."""
    path = os.path.relpath(file)
    return file if path.startswith("..") else path


def _listed(found: list[str]) -> str:
    errors = f"{len(found)} error" if len(found) == 1 else f"{len(found)} errors"
    return "\n".join([f"The app has {errors}:", *(f"  {each}" for each in found)])


@jsii.implements(IValidation)
class _Validation:
    """What the CDK asks before it writes templates: an app with errors gets none."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems

    def validate(self) -> list[str]:
        """Return the errors."""
        return self._problems.report()
