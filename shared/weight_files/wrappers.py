"""What people's training scripts put around weights, and how it comes off: for the API, ``dfkd init`` and the loader.

Two questions, answered here and nowhere else. *Which* of a file's mappings is the ``state_dict``: under the usual
keys, and an average over the training (EMA, SWA) before the raw weights beside it, as that is what its author measured
and what timm and torchvision evaluate. *Whose* names these are: a wrapper's (``module.``, ``_orig_mod.`` wherever it
stands), a module's around the network (Lightning's ``model.``), counters that tools leave (thop, ``AveragedModel``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

AVERAGE_KEYS: Final = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model", "swa_model")
"""Keys under which training scripts store an average of the weights over the training."""

WRAPPER_KEYS: Final = ("state_dict", "model_state_dict", "model", "net", "network")
"""Keys under which they store the ``state_dict``, the likeliest first."""

WRAPPER_PREFIXES: Final = ("module.", "_orig_mod.")
"""What DataParallel / DistributedDataParallel and torch.compile put before every name."""

COUNTERS: Final = ("total_ops", "total_params")
"""What ``thop.profile`` registers with every module."""

AVERAGE_COUNTER: Final = "n_averaged"
"""Of ``torch.optim.swa_utils.AveragedModel``."""

EXTRA_STATE: Final = "_extra_state"
"""Of modules with ``get_extra_state``: no weight, and of any type."""

_FIRST_PART: Final = re.compile(r"[A-Za-z_]\w*\.", re.ASCII)
_AVERAGE: Final = re.compile(r"(^|_)(ema|swa|averaged?)(_|\.|$)")

MAX_LEVELS: Final = 8
"""Of wrappers in wrappers. A stranger's mapping may contain itself, and then has no end."""


MAX_PARTS: Final = 32
"""Of first parts of names, behind each of which a network is looked for."""


class SeveralNetworks(ValueError):
    """A file has the weights of several networks of the same kind, and nothing says which is meant.

    Attributes:
        prefixes: what stands before the names of each.
    """

    def __init__(self, prefixes: Collection[str]) -> None:
        super().__init__(f"it holds several such networks: {', '.join(f'`{each}`' for each in sorted(prefixes))}")
        self.prefixes = sorted(prefixes)


def unwrapped(content: object, is_weight: Callable[[object], bool] = lambda _: True) -> object:
    """What lies under the wrapper keys of a checkpoint's content, at most ``MAX_LEVELS`` deep.

    Args:
        content: of the file.
        is_weight: tells a tensor. A mapping of an average is taken only if it holds nothing else.
    """
    for _ in range(MAX_LEVELS):
        if not isinstance(content, Mapping):
            break
        averages = (unwrapped_once(content.get(key)) for key in AVERAGE_KEYS)
        average = next((each for each in averages if _is_state_dict(each, is_weight)), None)
        inner = average or next((content[key] for key in WRAPPER_KEYS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    return content


def unwrapped_once(content: object) -> object:
    """What lies under a usual key of a mapping; without one, the content itself."""
    if isinstance(content, Mapping):
        return next((content[key] for key in WRAPPER_KEYS if isinstance(content.get(key), Mapping)), content)
    return content


def _is_state_dict(content: object, is_weight: Callable[[object], bool]) -> bool:
    return isinstance(content, Mapping) and bool(content) and all(is_weight(each) for each in content.values())


def bare_names(names: Iterable[str], fits: Callable[[Collection[str]], bool]) -> dict[str, str]:
    """The names of a network's weights, each with the name that it has in the file. Counters are left out.

    Args:
        names: of all tensors of the file.
        fits: whether such names are those of the network that is wanted, or of a known one.

    Returns:
        Names for which ``fits`` is true if there are such; else with all that wrappers put before them taken off.

    Raises:
        SeveralNetworks: behind more than one prefix lies what fits.
    """
    as_written = {name: name for name in names}
    found = _cleaned(as_written)
    if not fits(found) and fits(as_written):
        return as_written
    for _ in range(MAX_LEVELS):
        if fits(found):
            return found
        prefixes = sorted({_first(name) for name in found} - {""})
        behind = {prefix: _behind(prefix, found) for prefix in prefixes if len(prefixes) <= MAX_PARTS}
        fitting = [prefix for prefix, inner in behind.items() if fits(inner)]
        averages = [prefix for prefix in fitting if _AVERAGE.search(prefix.lower())]
        if len(fitting) > 1 and len(averages) != 1:
            raise SeveralNetworks(fitting)
        if fitting:
            return behind[(averages or fitting)[0]]
        prefix = common_prefix(found)
        if prefix is None:
            break
        found = _behind(prefix, found)
    return found


def common_prefix(names: Iterable[str]) -> str | None:
    """What stands before every name: of the usual wrappers, or of a module around the network, such as ``net.``.

    The caller decides whether it is to come off: a network's own names may have a first part in common, too.
    """
    names = list(names)
    found = _FIRST_PART.match(names[0]) if names else None
    candidates = (*WRAPPER_PREFIXES, found[0]) if found else WRAPPER_PREFIXES
    return next((each for each in candidates if names and all(name.startswith(each) for name in names)), None)


def _cleaned(found: Mapping[str, str]) -> dict[str, str]:
    """Without counters, and without what torch.compile and DataParallel put into the names of parts they wrap."""
    is_average = AVERAGE_COUNTER in found and any(name.startswith("module.") for name in found)
    kept = {}
    for name, original in found.items():
        parts = name.split(".")
        if parts[-1] in COUNTERS or (is_average and name == AVERAGE_COUNTER):
            continue
        kept[".".join(part for part in parts if part != "_orig_mod")] = original
    # A network may have a part that is called `module`, so this comes off only where nothing is lost by it.
    without = {re.sub(r"\.module\.", ".", name): original for name, original in kept.items()}
    return without if len(without) == len(kept) else kept


def _first(name: str) -> str:
    found = _FIRST_PART.match(name)
    return found[0] if found else ""


def _behind(prefix: str, found: Mapping[str, str]) -> dict[str, str]:
    return {name.removeprefix(prefix): original for name, original in found.items() if name.startswith(prefix)}
