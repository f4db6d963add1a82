"""What training scripts put around a ``state_dict``, and how it comes off: for the checker and the loader alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

WRAPPER_KEYS: Final = ("state_dict", "model_state_dict", "model", "net", "network")
"""Keys under which training scripts store the ``state_dict``, the likeliest first."""

WRAPPER_PREFIXES: Final = ("module.", "_orig_mod.")
"""What DataParallel / DistributedDataParallel and torch.compile put before every name."""

MAX_LEVELS: Final = 8
"""Of wrappers in wrappers. A stranger's mapping may contain itself, and then has no end."""


def unwrapped(content: object) -> object:
    """What lies under the wrapper keys of a checkpoint's content, at most ``MAX_LEVELS`` deep."""
    for _ in range(MAX_LEVELS):
        if not isinstance(content, Mapping):
            break
        inner = next((content[key] for key in WRAPPER_KEYS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    return content
