"""Whether what a resource waits for at its creation is made before it."""

from collections.abc import Iterator

from tests.synth.walk import pages
from tests.synth.walk.deployed import Deployed, Resource


def proxies(app: Deployed) -> Iterator[str]:
    """Check that the login of each secret of a proxy is made before the proxy's targets.

    Each update of the targets waits for them, too: so the login depends on whatever names the
    server that they are.
    """
    for group in app.of_kind("AWS::RDS::DBProxyTargetGroup"):
        (name,) = app.texts(group, "DBProxyName")
        found = [each for each in app.of_kind("AWS::RDS::DBProxy") if name in _names(app, each)]
        secrets = [text for proxy in found for text in app.texts(proxy, "Auth.*.SecretArn")]
        if not found:
            yield f"{group}: no proxy is named {name}"
        for secret in secrets:
            logins = [
                each
                for each in app.of_kind("Custom::Login")
                if each.stack == group.stack and each.name in group.waits_for
                and secret in app.texts(each, "Event.SecretId")
            ]  # fmt: skip
            if not logins:
                yield f"{group}: nothing makes the login of {secret} before it: {pages.TARGETS}"
            for login in logins:
                yield from _server(app, login)


def _names(app: Deployed, proxy: Resource) -> list[str]:
    return [app.returned(proxy, "Ref"), *app.texts(proxy, "DBProxyName")]


def _server(app: Deployed, login: Resource) -> Iterator[str]:
    """Check that another server is another login: its address and its id are properties."""
    named = set(app.texts(login, "Server.*"))
    for parameter in app.of_kind("AWS::SSM::Parameter"):
        (path,) = app.texts(parameter, "Name")
        (value,) = app.texts(parameter, "Value")
        if path.endswith(("/database/host", "/database/resource-id")) and value not in named:
            yield f"{login}: it is not made again for another {path} = {value}"
