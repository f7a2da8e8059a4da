"""MiniStack's handlers of resource types: their types, and how to make and complete them."""

import uuid
from collections.abc import Callable
from importlib import import_module
from typing import Any

Properties = dict[str, Any]
Made = tuple[str, dict[str, Any]]  # a resource's physical id and its attributes
Handlers = dict[str, Any]
Response = tuple[int, dict[str, str], Any]  # of an API: status, headers, body


def named(
    prefix: str, attributes: Callable[[str], dict[str, Any]], name: str | None = None
) -> Handlers:
    """Make handlers of a type that only has to exist, with a name and attributes.

    Ref is the property `name` of the template, if it is set, or a made-up id.
    """

    def create(logical_id: str, props: Properties, stack_name: str) -> Made:  # noqa: ARG001 - MiniStack passes it
        given = props.get(name) if name else None
        physical_id = str(given or f"{prefix}-{uuid.uuid4().hex[:17]}")
        return physical_id, attributes(physical_id)

    def update(
        physical_id: str,
        old: Properties,  # noqa: ARG001 - MiniStack passes it
        new: Properties,
        stack_name: str,  # noqa: ARG001 - MiniStack passes it
    ) -> Made:
        given = str((new.get(name) if name else None) or physical_id)
        return given, attributes(given)

    return {"create": create, "update": update, "delete": lambda _id, _props: None}


def complete(handlers: Handlers, completion: Callable[[Made, Properties], Made]) -> None:
    """Call `completion` after a type's create and update, with what they have made."""
    create, update = handlers["create"], handlers["update"]

    def completed_create(logical_id: str, props: Properties, stack_name: str) -> Made:
        return completion(create(logical_id, props, stack_name), props)

    def completed_update(
        physical_id: str, old: Properties, new: Properties, stack: str, *logical_id: str | None
    ) -> Made:
        return completion(update(physical_id, old, new, stack, *logical_id), new)

    handlers.update(create=completed_create, update=completed_update)


def is_true(value: object) -> bool:
    """Read a boolean of a template, which may be text."""
    return str(value).lower() == "true"


def arn(service: str, resource: str) -> str:
    """Name a resource in the account and the region of the request."""
    responses = import_module("ministack.core.responses")
    region, account = responses.get_region(), responses.get_account_id()
    return f"arn:aws:{service}:{region}:{account}:{resource}"
