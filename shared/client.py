"""Where the client was before version 0.2: ``from shared.client import Client`` works for one version more."""

import importlib
import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    """The client's own names, with a deprecation warning."""
    client = importlib.import_module("synth_service.client")
    if name.startswith("__") or not hasattr(client, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"`from shared.client import {name}` is deprecated; write `from synth_service.client import {name}`",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(client, name)
