"""A Django project with one app, whose settings a process can have once."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import django
from django.conf import settings
from django.db import connections


@functools.cache
def entry_model() -> Any:
    """Configure Django, once for the process, and return the model."""
    settings.configure(
        DATABASES={
            "default": {"ENGINE": "lambda_pg.django"},
            "direct": {"ENGINE": "lambda_pg.django", "OPTIONS": {"direct": True}},
        },
        INSTALLED_APPS=["tests.integration.ledger"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
        TIME_ZONE="Europe/Vienna",
    )
    django.setup()
    from tests.integration.ledger.models import Entry  # noqa: PLC0415 - needs the settings

    return Entry


@contextmanager
def fresh_connections() -> Iterator[None]:
    """Close at the end what Django has opened, with its pools and settings."""
    try:
        yield
    finally:
        for alias in connections:
            connections[alias].close()
            connections[alias].close_pool()
            del connections[alias]
