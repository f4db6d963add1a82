"""Looking into a torch checkpoint without torch: what it would import, and which tensors it holds.

A pickle is a program. This one is never run: a small machine goes through its instructions, the few that
``torch.load(weights_only=True)`` knows, with stand-ins for what they would make. A name that torch would not import
ends it, a call to rebuild a tensor gives its shape, every other call gives ``Opaque``. So whatever the file says, no
code of anybody runs, and the work is in proportion to the length of the file. Tensor data is never read. Tests
compare the names with torch's own.
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from shared.weight_files.allow_list import (
    DENSE,
    IMPORTS,
    OLD_MODULES,
    OTHER_IMPORTS,
    REBUILD,
    REBUILD_WITH_DTYPE,
    WRAPPERS,
)

MAX_PICKLE_BYTES = 8 * 1024 * 1024
MAX_INSTRUCTIONS = 400_000
"""Of all pickles of a file; a tensor takes about 40."""

MAX_DIMENSIONS = 32
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class UnsafePickle(ValueError):
    """Loading the file would run code, or do what weights need not."""


class UnreadableFile(ValueError):
    """It is no checkpoint, or it is damaged."""


class TensorShape(NamedTuple):
    """A tensor without its values. ``dtype`` as safetensors names it."""

    dtype: str
    shape: tuple[int, ...]


class Imported(NamedTuple):
    """Stands in for what the pickle would import."""

    name: str


class Opaque:
    """Stands in for anything that is no dense tensor and no plain value."""


OPAQUE: Final = Opaque()


def read_zip(path: Path) -> Any:
    """What a checkpoint of today's format holds, with ``TensorShape`` for tensors.

    Raises:
        UnsafePickle, UnreadableFile: it would not load, and why.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {info.filename: info for info in archive.infolist()}
            folder = next(iter(infos), "").partition("/")[0]
            if f"{folder}/constants.pkl" in infos:
                raise UnsafePickle("it is a TorchScript archive, which holds code")
            info = infos.get(f"{folder}/data.pkl")
            if info is None:
                raise UnreadableFile("it is a zip archive without a data.pkl")
            if info.file_size > MAX_PICKLE_BYTES:
                raise UnreadableFile(f"its data.pkl is larger than {MAX_PICKLE_BYTES:,} bytes")
            data = archive.read(info)
    except (UnsafePickle, UnreadableFile):
        raise
    except Exception as error:  # a damaged archive fails in many ways
        raise UnreadableFile(f"its zip archive is damaged or cut short ({error})") from error
    return _evaluate(data, count=1)[0]


def read_legacy(file: BinaryIO) -> Any:
    """What a checkpoint of before torch 1.6 holds: a magic number, a version, facts of the machine, the content.

    Raises:
        UnsafePickle, UnreadableFile: it would not load, and why.
    """
    data = file.read(MAX_PICKLE_BYTES)
    if _evaluate(data, count=1) != [LEGACY_MAGIC]:
        raise UnreadableFile("it is a pickle, but no torch checkpoint")
    _magic, _version, _system, content, _keys = _evaluate(data, count=5)
    return content


def element_count(shape: tuple[int, ...]) -> int:
    """Values in a tensor of this shape."""
    return math.prod(shape)


def _evaluate(data: bytes, *, count: int) -> list[Any]:
    """What so many pickles that follow each other would make."""
    file = io.BytesIO(data)
    machine = _Machine()
    try:
        return [machine.run(file) for _ in range(count)]
    except (UnsafePickle, UnreadableFile):
        raise
    except Exception as error:  # a damaged pickle fails in many ways
        raise UnreadableFile(f"its pickle is damaged or cut short ({type(error).__name__})") from error


class _Machine:
    """Goes through pickles, one after another, up to ``MAX_INSTRUCTIONS`` in all."""

    def __init__(self) -> None:
        self._left = MAX_INSTRUCTIONS
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, file: BinaryIO) -> Any:
        """The value of one pickle; the file is then at its end."""
        self._stack, self._marks, self._memo = [], [], {}
        for opcode, argument, _ in pickletools.genops(file):
            self._left -= 1
            if self._left < 0:
                raise UnreadableFile(f"its pickle has more than {MAX_INSTRUCTIONS:,} instructions")
            self._do(opcode.name, argument)
        return self._stack.pop()

    def _do(self, instruction: str, argument: Any) -> None:
        stack = self._stack
        match instruction:
            case "PROTO" | "STOP":
                pass
            case "GLOBAL":
                stack.append(_imported(argument))
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINSTRING":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[instruction])
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_SET":
                stack.append(OPAQUE)
            case "MARK":
                self._marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self._pop_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(int(instruction[-1]))))
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE" | "NEWOBJ":
                function, arguments = self._pop(2)
                stack.append(_call(function, arguments))
            case "BUILD":
                self._pop(1)
            case "APPEND":
                self._append(self._pop(1))
            case "APPENDS":
                self._append(self._pop_mark())
            case "SETITEM":
                self._set_items(self._pop(2))
            case "SETITEMS":
                self._set_items(self._pop_mark())
            case _:
                raise UnsafePickle(f"it has the pickle instruction {instruction}, which weights do not need")

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count + (self._marks[-1] if self._marks else 0):
            raise IndexError("stack underflow")
        found = self._stack[-count:]
        del self._stack[-count:]
        return found

    def _pop_mark(self) -> list[Any]:
        start = self._marks.pop()
        found = self._stack[start:]
        del self._stack[start:]
        return found

    def _append(self, items: list[Any]) -> None:
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(items)

    def _set_items(self, flat: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            # Only plain keys: a tuple may be nested a million deep, which nobody can hash.
            pairs = zip(flat[::2], flat[1::2], strict=True)
            target.update((key, value) for key, value in pairs if isinstance(key, (str, int, float, bytes, type(None))))


def _imported(argument: Any) -> Imported:
    module, _, name = str(argument).partition(" ")
    full = f"{OLD_MODULES.get(module, module)}.{name}"
    if full not in IMPORTS and not OTHER_IMPORTS.fullmatch(full):
        raise UnsafePickle(f"it would import `{full[:200]}`")
    return Imported(full)


def _storage(identity: Any) -> Any:
    """('storage', kind, key, location, size) names the data of a tensor; what matters is the kind."""
    is_storage = isinstance(identity, tuple) and len(identity) >= 5 and identity[0] in ("storage", b"storage")
    return identity[1] if is_storage else OPAQUE


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Imported) or not isinstance(arguments, tuple):
        return OPAQUE
    if function.name == "torch._tensor._rebuild_from_type_v2" and len(arguments) >= 3:
        function, arguments = arguments[0], arguments[2]
        if not isinstance(function, Imported) or not isinstance(arguments, tuple):
            return OPAQUE
    if function.name == "collections.OrderedDict":
        return _ordered(arguments)
    if function.name in WRAPPERS and arguments:
        return arguments[0]
    if function.name in REBUILD and len(arguments) >= 3:
        return _tensor(arguments[0], arguments[2])
    if function.name == REBUILD_WITH_DTYPE and len(arguments) >= 7:
        return _tensor(arguments[6], arguments[2])
    return OPAQUE


def _ordered(arguments: tuple[Any, ...]) -> Any:
    """Python 2 wrote the items as arguments; they are taken over and not copied, as one list may be used often."""
    if not arguments:
        return {}
    items = arguments[0]
    if not isinstance(items, list):
        return OPAQUE
    pairs = {each[0]: each[1] for each in items if isinstance(each, list) and len(each) == 2 and type(each[0]) is str}
    items.clear()
    return pairs


def _tensor(kind: Any, size: Any) -> Any:
    is_shape = isinstance(size, tuple) and len(size) <= MAX_DIMENSIONS and all(type(each) is int for each in size)
    dtype = DENSE.get(kind.name) if isinstance(kind, Imported) else None
    return TensorShape(dtype, size) if dtype and is_shape else OPAQUE
