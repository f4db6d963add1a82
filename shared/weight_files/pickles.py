"""Looking into a torch checkpoint without torch: what it would import, and which tensors it holds.

A pickle is a program. This one is never run: a small machine goes through its instructions, the few that
``torch.load(weights_only=True)`` knows, with stand-ins for what they would make. A name that torch would not import
ends it, a call to rebuild a tensor gives its shape, every other call gives ``Opaque``. So whatever the file says, no
code of anybody runs, and the work is in proportion to the length of the file. Tensor data is never read. Tests
compare the names with torch's own.

What the machine makes may contain itself, a million levels deep: whoever walks it counts its steps.
"""

from __future__ import annotations

import math
import pickletools
import struct
from collections.abc import Callable
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
from shared.weight_files.refusals import ExportedFile, ScriptedFile, UnreadableFile, UnsafePickle
from shared.weight_files.zip_archive import DamagedArchive, ZipArchive

MAX_PICKLE_BYTES = 8 * 1024 * 1024
MAX_INSTRUCTIONS = 200_000
"""Of all pickles of a file; a tensor takes about 40."""

MAX_DIMENSIONS = 32
MAX_ELEMENTS = 2**48
"""Of one tensor. No file of weights holds as many; multiplying sizes without a bound takes minutes."""

MAX_INDEX = 1_000_000
"""Of a key that is a number, as optimizers have. Larger ones can be chosen to collide in a dictionary."""

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


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


class Items(dict[str, Any]):
    """Stands in for a dictionary: what it has under names."""

    other_keys = False
    """Whether it has keys that are no names; what lies under those is never looked at."""


def read_zip(path: Path) -> Any:
    """What a checkpoint of today's format holds, with ``TensorShape`` for tensors and ``Items`` for dictionaries.

    Raises:
        UnsafePickle, UnreadableFile: it would not load, and why.
    """
    try:
        archive = ZipArchive(path)
        folder = archive.members[0].name.partition("/")[0] if archive.members else ""
        if archive.find(f"{folder}/constants.pkl") is not None:
            raise ScriptedFile
        member = archive.find(f"{folder}/data.pkl")
        if member is None and archive.find(f"{folder}/archive_format") is not None:
            raise ExportedFile
        if member is None:
            raise UnreadableFile("it is a zip archive without a data.pkl")
        data = archive.read(member, MAX_PICKLE_BYTES)
    except DamagedArchive as error:
        raise UnreadableFile(str(error)) from None
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
    """Values in a tensor of a shape that ``is_shape`` has accepted."""
    return math.prod(shape)


def is_shape(sizes: tuple[Any, ...]) -> bool:
    """Whether a tensor of weights can have such sizes. Never multiplies numbers of more than 100 bits."""
    if len(sizes) > MAX_DIMENSIONS:
        return False
    elements = 1
    for size in sizes:
        if type(size) is not int or not 0 <= size <= MAX_ELEMENTS:
            return False
        elements = max(1, elements * size)
        if elements > MAX_ELEMENTS:
            return False
    return True


def _evaluate(data: bytes, *, count: int) -> list[Any]:
    """What so many pickles that follow each other would make."""
    machine = _Machine(data)
    try:
        return [machine.run() for _ in range(count)]
    except (UnsafePickle, UnreadableFile):
        raise
    except Exception as error:  # a damaged pickle fails in many ways
        raise UnreadableFile(f"its pickle is damaged or cut short ({type(error).__name__})") from error


class _Machine:
    """Goes through pickles, one after another, up to ``MAX_INSTRUCTIONS`` in all."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._left = MAX_INSTRUCTIONS
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value of one pickle; the next one follows it."""
        self._stack, self._marks, self._memo = [], [], {}
        data, instructions = self._data, _INSTRUCTIONS
        for _ in range(self._left):
            opcode = data[self._at]
            self._at += 1
            self._left -= 1
            instruction = instructions.get(opcode)
            if instruction is not None:
                instruction(self)
            elif opcode == _STOP:
                return self._stack.pop()
            else:
                raise _refused(opcode)
        raise UnreadableFile(f"its pickle has more than {MAX_INSTRUCTIONS:,} instructions")

    # -- arguments that stand in the pickle ---------------------------------------------------------

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise EOFError
        piece = self._data[self._at : end]
        self._at = end
        return piece

    def _number(self, form: str, count: int) -> Any:
        return struct.unpack(form, self._take(count))[0]

    def _line(self) -> str:
        end = self._data.index(b"\n", self._at, self._at + 1000)
        line = self._data[self._at : end]
        self._at = end + 1
        return line.decode()

    # -- instructions -------------------------------------------------------------------------------

    def protocol(self) -> None:
        self._take(1)

    def import_name(self) -> None:
        module, name = self._line(), self._line()
        self._stack.append(_imported(module, name))

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def push_text(self) -> None:
        self._stack.append(self._take(self._number("<I", 4)).decode("utf-8", "surrogatepass"))

    def push_short_bytes(self) -> None:
        # Text of Python 2: torch decodes it as UTF-8 too.
        self._stack.append(self._take(self._number("B", 1)).decode())

    def push_long(self) -> None:
        self._stack.append(int.from_bytes(self._take(self._number("B", 1)), "little", signed=True))

    def push_number(self, form: str, count: int) -> None:
        self._stack.append(self._number(form, count))

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def make_tuple(self, count: int | None) -> None:
        self._stack.append(tuple(self._pop_mark() if count is None else self._pop(count)))

    def make_tuple_of_one(self) -> None:
        # Spelled out, since a pickle of nothing else is the slowest that there is.
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise IndexError("stack underflow")
        self._stack[-1] = (self._stack[-1],)

    def remember(self, form: str, count: int) -> None:
        self._memo[self._number(form, count)] = self._stack[-1]

    def recall(self, form: str, count: int) -> None:
        self._stack.append(self._memo[self._number(form, count)])

    def load_storage(self) -> None:
        self._stack.append(_storage(self._stack.pop()))

    def call(self) -> None:
        function, arguments = self._pop(2)
        self._stack.append(_call(function, arguments))

    def build(self) -> None:
        self._pop(1)

    def append(self, *, many: bool) -> None:
        items = self._pop_mark() if many else self._pop(1)
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(items)

    def set_items(self, *, many: bool) -> None:
        flat = self._pop_mark() if many else self._pop(2)
        target = self._stack[-1]
        if isinstance(target, Items):
            for key, value in zip(flat[::2], flat[1::2], strict=True):
                if type(key) is str:
                    target[key] = value
                else:
                    _check_key(key)
                    target.other_keys = True

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


_STOP: Final = ord(".")
_INSTRUCTIONS: Final[dict[int, Callable[[_Machine], None]]] = {
    ord(code): instruction
    for code, instruction in {
        "\x80": _Machine.protocol,
        "c": _Machine.import_name,
        "J": lambda machine: machine.push_number("<i", 4),
        "K": lambda machine: machine.push_number("B", 1),
        "M": lambda machine: machine.push_number("<H", 2),
        "G": lambda machine: machine.push_number(">d", 8),
        "\x8a": _Machine.push_long,
        "X": _Machine.push_text,
        "U": _Machine.push_short_bytes,
        "N": lambda machine: machine.push(None),
        "\x88": lambda machine: machine.push(True),
        "\x89": lambda machine: machine.push(False),
        ")": lambda machine: machine.push(()),
        "]": lambda machine: machine.push([]),
        "}": lambda machine: machine.push(Items()),
        "\x8f": lambda machine: machine.push(OPAQUE),
        "(": _Machine.mark,
        "t": lambda machine: machine.make_tuple(None),
        "\x85": _Machine.make_tuple_of_one,
        "\x86": lambda machine: machine.make_tuple(2),
        "\x87": lambda machine: machine.make_tuple(3),
        "q": lambda machine: machine.remember("B", 1),
        "r": lambda machine: machine.remember("<I", 4),
        "h": lambda machine: machine.recall("B", 1),
        "j": lambda machine: machine.recall("<I", 4),
        "Q": _Machine.load_storage,
        "R": _Machine.call,
        "\x81": _Machine.call,
        "b": _Machine.build,
        "a": lambda machine: machine.append(many=False),
        "e": lambda machine: machine.append(many=True),
        "s": lambda machine: machine.set_items(many=False),
        "u": lambda machine: machine.set_items(many=True),
    }.items()
}
"""The instructions that torch knows, by their codes."""


def _refused(opcode: int) -> ValueError:
    known = next((each for each in pickletools.opcodes if each.code == chr(opcode)), None)
    if known is None:
        return UnreadableFile("its pickle is damaged or cut short (an unknown instruction)")
    return UnsafePickle(f"it has the pickle instruction {known.name}, which weights do not need")


def _check_key(key: Any) -> None:
    """Keys are names; optimizers count, and a setting may be under None. torch would hash whatever else stands here."""
    if key is not None and not (type(key) in (int, bool) and 0 <= key <= MAX_INDEX):
        raise UnsafePickle(f"it has a dictionary with a key that is no name, but a {_kind(key)}")


def _kind(key: Any) -> str:
    return "large number" if type(key) is int else type(key).__name__


def _imported(module: str, name: str) -> Imported:
    full = f"{OLD_MODULES.get(module, module)}.{name}"
    if full not in IMPORTS and not OTHER_IMPORTS.fullmatch(full):
        raise UnsafePickle(f"it would import {full[:200]!a}")
    return Imported(full)


def _storage(identity: Any) -> Any:
    """('storage', kind, key, location, size) names the data of a tensor; what matters is the kind."""
    is_storage = isinstance(identity, tuple) and len(identity) >= 5 and identity[0] == "storage"
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
    # Made of a number, these take as much memory as it says.
    if function.name.endswith(("bytearray", "Storage", "Tensor")) and any(type(each) is int for each in arguments[:9]):
        raise UnsafePickle(f"it would call `{function.name}` with a number")
    return OPAQUE


def _ordered(arguments: tuple[Any, ...]) -> Any:
    """Python 2 wrote the items as arguments; they are taken over and not copied, as one list may be used often."""
    if not arguments:
        return Items()
    items = arguments[0]
    if not isinstance(items, list):
        return OPAQUE
    pairs = Items(
        {each[0]: each[1] for each in items if isinstance(each, list) and len(each) == 2 and type(each[0]) is str}
    )
    pairs.other_keys = len(pairs) < len(items)
    items.clear()
    return pairs


def _tensor(kind: Any, size: Any) -> Any:
    """A shape of absurd sizes is no tensor's, and makes what it stands in no ``state_dict``."""
    dtype = DENSE.get(kind.name) if isinstance(kind, Imported) else None
    return TensorShape(dtype, size) if dtype and isinstance(size, tuple) and is_shape(size) else OPAQUE
