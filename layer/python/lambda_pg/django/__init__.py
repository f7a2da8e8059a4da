"""A Django database backend over the layer's pool: `"ENGINE": "lambda_pg.django"`.

The endpoint, the login and how to wait come from the environment, as for Database.from_env();
`"OPTIONS": {"direct": True}` takes the direct URL, for migrations.
"""

from lambda_pg._shared import database

__all__ = ["database"]
