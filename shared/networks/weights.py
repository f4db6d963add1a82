"""Weights from files that people already have, and safetensors files of our own.

A checkpoint comes from a stranger, so it is data and never code: safetensors, or a torch file that
``torch.load(weights_only=True)`` accepts. What training scripts put around a ``state_dict`` is taken off by the rule of
``shared.weight_files.wrappers``, and what then does not fit is refused with names and shapes instead of being loaded in
part.
"""

from __future__ import annotations

import errno
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.weight_files.formats import START_BYTES, is_safetensors
from shared.weight_files.inspection import UnreadableFile, UnsafePickle, inspect
from shared.weight_files.wrappers import (
    EXTRA_STATE,
    WRAPPER_KEYS,
    WRAPPER_PREFIXES,
    SeveralNetworks,
    bare_names,
    common_prefix,
    unwrapped,
)

LISTED_NAMES: Final = 4
"""Names of each kind in a message: enough to see the pattern."""


def load_checkpoint(network: nn.Module, path: Path, *, field: str) -> None:
    """Load every weight of the network from a file; the network stays as it was unless all of them fit.

    ``num_batches_tracked`` may be missing, as in files older than torch 0.4.1.

    Args:
        network: on any device; its weights keep their device and dtype.
        path: a safetensors or torch file, told apart by content.
        field: the job's field that names the file, such as ``teacher.checkpoint``, for messages.

    Raises:
        UserError: ``checkpoint_not_found``, ``unreadable_checkpoint``, ``unsafe_checkpoint`` (it would need
            to run code), ``checkpoint_mismatch`` or ``checkpoint_not_finite``.
    """
    if not path.is_file():
        raise UserError(
            "checkpoint_not_found", f"{field}: there is no file `{path.name}`; upload it or correct the path"
        )
    expected = dict(network.state_dict())
    weights = _named(_find_state_dict(_read(path, field), path, field), expected, path, field)
    for name, tensor in expected.items():
        if name.endswith((".num_batches_tracked", EXTRA_STATE)):
            weights.setdefault(name, tensor)
    tensors = {name: tensor for name, tensor in expected.items() if not name.endswith(EXTRA_STATE)}
    _check_fit(tensors, {name: weights[name] for name in weights if not name.endswith(EXTRA_STATE)}, path, field)
    _check_values(weights, path, field)
    network.load_state_dict(weights)


def read_weights(path: Path, field: str) -> dict[str, Tensor]:
    """The weights in a local file, under the names that they have there.

    Args:
        path: as for ``load_checkpoint``.
        field: as for ``load_checkpoint``.

    Raises:
        UserError: ``unreadable_checkpoint`` or ``unsafe_checkpoint``.
    """
    return _find_state_dict(_read(path, field), path, field)


def save_checkpoint(network: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write all weights as safetensors, from any device; the same weights and metadata give the same bytes.

    Tensors that share memory are written once for each name, so that any reader finds every name.

    Args:
        path: overwritten in place; whoever needs an atomic put writes to a temporary name.
        metadata: strings for the file's header, such as architecture and accuracy.
    """
    weights = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in bare_state_dict(network).items()
    }
    encoded = safetensors.torch.save(weights)
    # The library writes metadata in random order; equal contents should have equal hashes, so we write the header.
    length = int.from_bytes(encoded[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(encoded[8 : 8 + length])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data that follows stays aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.write(memoryview(encoded)[8 + length :])


def bare_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """The ``state_dict`` under the names of the network itself, also when it is compiled or data-parallel."""
    weights = {name: each for name, each in network.state_dict().items() if isinstance(each, Tensor)}
    while (prefix := common_prefix(weights)) in WRAPPER_PREFIXES:
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def _read(path: Path, field: str) -> Any:
    with path.open("rb") as file:
        start = file.read(START_BYTES)
    _look_into(path, field)
    try:
        if is_safetensors(start, path.stat().st_size):
            return safetensors.torch.load_file(path, device="cpu")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch warns of (TorchScript, pickle protocols) we raise
            # Not by its name, whose ending would count for more than the content.
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's zip reader reports a truncated file as EINVAL; any other OSError is the disk's fault, worth a retry.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        text = str(error)
        is_pickle = start.startswith((b"PK", b"\x80"))
        refused = isinstance(error, pickle.UnpicklingError) and (is_pickle or "unsupported global" in text.lower())
        if refused or "TorchScript" in text:
            raise UserError(
                "unsafe_checkpoint",
                f"{field}: `{path.name}` holds more than tensors and would have to run code to load, which is refused"
                f"{_refused_object(text)}. {HOW_TO_SAVE}",
            ) from None
        raise UserError(
            "unreadable_checkpoint",
            f"{field}: `{path.name}` is neither a safetensors nor a torch checkpoint, or it is cut short "
            f"({type(error).__name__}); save it again with safetensors.torch.save_file or torch.save",
        ) from error


HOW_TO_SAVE: Final = (
    "Save the weights alone: torch.save(network.state_dict(), path), or "
    "safetensors.torch.save_file(network.state_dict(), path)."
)


def _look_into(path: Path, field: str) -> None:
    """Refuses what the API would refuse: it looks with bounds, which the libraries that load do not have."""
    try:
        inspect(path)
    except UnsafePickle as error:
        message = f"`{path.name}` holds more than tensors and would have to run code to load, which is refused: {error}"
        raise UserError("unsafe_checkpoint", f"{field}: {message}. {error.remedy or HOW_TO_SAVE}") from None
    except UnreadableFile as error:
        message = f"`{path.name}` is no checkpoint that can be read: {error}"
        raise UserError("unreadable_checkpoint", f"{field}: {message}. {error.remedy or HOW_TO_SAVE}") from None


def _refused_object(text: str) -> str:
    """What torch's message says the file wanted to import, for ours."""
    named = re.search(r"unsupported global:? (?:GLOBAL )?([\w.]+)", text, re.IGNORECASE)
    return f" (it names `{named[1][:100]}`)" if named else ""


def _find_state_dict(content: Any, path: Path, field: str) -> dict[str, Tensor]:
    """The mapping of names to tensors, out of what training scripts put around it."""
    content = unwrapped(content, lambda each: isinstance(each, Tensor))
    if not isinstance(content, Mapping):
        found = f"a {type(content).__name__}"
    elif not content:
        found = "nothing"
    else:
        weights = {name: each for name, each in content.items() if not _is_extra(name)}
        odd = next((name for name, value in weights.items() if not _is_plain(name, value)), None)
        if odd is None:
            return weights
        found = f"{_shown(odd)}, a {type(content[odd]).__name__} where a dense tensor should be"
    raise UserError(
        "unreadable_checkpoint",
        f"{field}: `{path.name}` holds {found}; expected a state_dict (names to tensors), "
        f"alone or under {', '.join(f'`{key}`' for key in WRAPPER_KEYS)}",
    )


def _shown(key: object) -> str:
    """A key of a stranger's mapping for a message. One that is no name may be of any size, and is not written out."""
    return f"`{key[:100]}`" if isinstance(key, str) else f"a key of type {type(key).__name__}"


def _is_extra(name: object) -> bool:
    return isinstance(name, str) and name.endswith(EXTRA_STATE)


def _is_plain(name: object, value: object) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_quantized
        and not value.is_complex()
    )


def _named(weights: dict[str, Tensor], expected: Mapping[str, object], path: Path, field: str) -> dict[str, Tensor]:
    """The weights under the network's names; where that cannot be, under such as tell best what is wrong."""
    own = {name for name in expected if not name.endswith(("num_batches_tracked", EXTRA_STATE))}
    try:
        found = bare_names(weights, own.issubset)
    except SeveralNetworks as error:
        message = f"{field}: `{path.name}` cannot be used, as {error}; save the weights of the one that is meant alone"
        raise UserError("checkpoint_mismatch", message) from None
    # A first part that is no wrapper's came off without need when nothing fits now: then tell the file's own names.
    return {name: weights[each] for name, each in found.items()} if found.keys() & own else weights


def _check_fit(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], path: Path, field: str) -> None:
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    misshapen = [name for name in expected if name in given and expected[name].shape != given[name].shape]
    if not (missing or unexpected or misshapen):
        return
    shapes = [
        f"{name} is {_shape(given[name])} in the file, {_shape(expected[name])} in the network" for name in misshapen
    ]
    parts = [
        f"{len(names)} {kind}: {', '.join(names[:LISTED_NAMES])}{', …' if len(names) > LISTED_NAMES else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    raise UserError(
        "checkpoint_mismatch",
        f"{field}: the weights in `{path.name}` are not of this network. {'; '.join(parts)}. "
        f"{_likely_cause(expected, given, misshapen)}",
    )


def _likely_cause(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], misshapen: list[str]) -> str:
    """The field to change, told from which weights differ: the first convolution's inputs, the last layer's outputs."""
    weights = [name for name, tensor in expected.items() if tensor.ndim >= 2]
    hints = []
    if weights and weights[-1] in misshapen:
        ours, theirs = expected[weights[-1]].shape, given[weights[-1]].shape
        if ours[0] != theirs[0] and ours[1:] == theirs[1:]:
            hints.append(f"num_classes is likely wrong: {ours[0]}, while the file has {theirs[0]} classes")
    if weights and weights[0] in misshapen:
        ours, theirs = expected[weights[0]].shape, given[weights[0]].shape
        if len(ours) == len(theirs) and ours[0] == theirs[0] and ours[1] != theirs[1] and ours[2:] == theirs[2:]:
            hints.append(f"input.channels is likely wrong: {ours[1]}, while the file takes {theirs[1]}")
    return f"{'; '.join(hints) or 'Check arch and kwargs'}."


def _check_values(weights: Mapping[str, Tensor], path: Path, field: str) -> None:
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            continue  # extra state of the network's own
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(
                "checkpoint_not_finite",
                f"{field}: `{name}` in `{path.name}` holds NaN or infinity; the training had diverged, take an "
                "earlier checkpoint",
            )


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"
