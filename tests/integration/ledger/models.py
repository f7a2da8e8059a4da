"""One table, with the types that Django reads in its own way."""

from typing import Any

from django.db import models


class Entry(models.Model):
    """An amount that was booked."""

    account = models.CharField(max_length=40)
    amount = models.IntegerField()
    booked_at = models.DateTimeField()
    details: Any = models.JSONField(default=dict)

    class Meta:
        """An account has each amount once."""

        app_label = "ledger"
        constraints = (models.UniqueConstraint(fields=["account", "amount"], name="once"),)
