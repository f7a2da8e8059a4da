"""OpenTelemetry's API and SDK for tests of spans.

A program that has loaded the API gets spans, so it is loaded for these tests only: the others see
the layer as it is without.
"""

import functools
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

API = "opentelemetry.trace"


@functools.cache
def _loaded() -> ModuleType:
    importlib.import_module("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    return sys.modules.pop(API)


class Spans:
    """The spans that have ended, as the SDK's exporter has them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Load the API and the SDK until the end of the test."""
        monkeypatch.setitem(sys.modules, API, _loaded())
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - loaded only here
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: PLC0415 - loaded only here
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import (  # noqa: PLC0415 - loaded only here
            InMemorySpanExporter,
        )

        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer("lambda_pg")
        monkeypatch.setattr("lambda_pg._tracing._tracer", self.tracer)

    def take(self) -> list[Any]:
        """Return those that have ended since the last time, in the order of their beginning."""
        ended = sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0)
        self._exporter.clear()
        return ended

    def tree(self) -> list[str]:
        """Return their names, each behind its parent's: a > b."""
        spans = self.take()
        by_id = {span.context.span_id: span for span in spans}
        return [" > ".join(reversed(list(_lineage(span, by_id)))) for span in spans]

    @contextmanager
    def without_api(self) -> Iterator[None]:
        """Be a program that has not loaded the API."""
        module = sys.modules.pop(API)
        try:
            yield
        finally:
            sys.modules[API] = module


def _lineage(span: Any, by_id: dict[int, Any]) -> Iterator[str]:
    while span is not None:
        yield span.name
        span = by_id.get(span.parent.span_id) if span.parent else None


def seconds(span: Any) -> float:
    """Return how long it took."""
    return float(span.end_time - span.start_time) / 1e9


def events(span: Any) -> list[str]:
    """Return the names of its events."""
    return [event.name for event in span.events]
