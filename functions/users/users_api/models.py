"""What the sample API takes and shows; the OpenAPI document has the same models."""

from datetime import datetime
from typing import Annotated, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict, StringConstraints, WithJsonSchema

SPACES: Final = r"\u0009-\u000d\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""What Pydantic strips: the characters that Unicode calls white space."""

SOLID: Final = rf"[^\u0000{SPACES}]"
"""A character that a name can begin and end with; PostgreSQL's text cannot hold NUL."""

Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=2, max_length=50, pattern=r"^[^\x00]*$"),
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 2,
            "pattern": rf"^[{SPACES}]*{SOLID}[^\u0000]{{0,48}}{SOLID}[{SPACES}]*$",
            "description": "2 to 50 characters, without the spaces around them",
            "examples": ["Ada Lovelace"],
        }
    ),
]


class UserFields(BaseModel):
    """The fields of a user that a client may set; others are refused, not ignored."""

    model_config = ConfigDict(extra="forbid")

    name: Name


class User(BaseModel):
    """A user as the API shows it; `version` is what the header ETag has in quotes."""

    id: UUID
    name: str
    version: int
    created_at: datetime
    updated_at: datetime


class Page(BaseModel):
    """Users ordered by id; `next` is the `after` of the next page."""

    users: list[User]
    next: UUID | None
