"""The one form of every message about a wrong value: "name is value; must …". Pure: no I/O."""


def shown(value: object) -> str:
    """Write a value as cdk.json has it, but for quotes."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(list(value) if isinstance(value, tuple) else value)


def problem(name: str, value: object, must: str) -> str:
    """Say which value a setting has and what must hold, as in "be at least 0.5 (ACU)"."""
    return f"{name} is {shown(value)}; must {must}"
