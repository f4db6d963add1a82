"""What training scripts put around a ``state_dict``, and how it comes off: for the checker and the loader alike."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

WRAPPER_KEYS: Final = ("state_dict", "model_state_dict", "model", "net", "network")
"""Keys under which training scripts store the ``state_dict``, the likeliest first."""

WRAPPER_PREFIXES: Final = ("module.", "_orig_mod.")
"""What DataParallel / DistributedDataParallel and torch.compile put before every name."""

_FIRST_PART: Final = re.compile(r"[A-Za-z_]\w*\.", re.ASCII)

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


def common_prefix(names: Iterable[str]) -> str | None:
    """What stands before every name: of the usual wrappers, or of a module around the network, such as ``net.``.

    The caller decides whether it is to come off: a network's own names may have a first part in common, too.
    """
    names = list(names)
    found = _FIRST_PART.match(names[0]) if names else None
    candidates = (*WRAPPER_PREFIXES, found[0]) if found else WRAPPER_PREFIXES
    return next((each for each in candidates if names and all(name.startswith(each) for name in names)), None)
