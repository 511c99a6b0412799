"""What a path can be asked with: all of it, where the framework names the methods of the first route that fits."""

from __future__ import annotations

from starlette.routing import Match
from starlette.types import Scope

_METHODS = ("GET", "HEAD", "POST", "DELETE")


def allowed(scope: Scope) -> str:
    """The value of `Allow` for the path of a request."""
    routes = scope["app"].routes
    asked = {key: scope[key] for key in ("type", "path", "root_path", "headers") if key in scope}
    found = [
        method
        for method in _METHODS
        if any(route.matches(asked | {"method": method})[0] is Match.FULL for route in routes)
    ]
    return ", ".join(found or ("GET", "HEAD"))  # of a file in a folder, which is no route of ours
