"""One image to bytes and back: 8-bit arrays of shape (channels, height, width) as png, jpg, webp or npy.

Files come from outside as well: sizes are compared with what is wanted *before* anything is decoded, so a
small file that claims a huge picture costs nothing, and npy files never run code. Pillow is told which formats there
may be: left alone it also opens EPS by starting Ghostscript, and ICO by decoding what lies inside.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from shared.errors import UserError
from shared.shards.manifest import ImageFormat
from shared.specs import MAX_IMAGE_VALUES

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp", "npy")
PILLOW_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's color mode for a number of channels."""

FORMAT_CHANNELS: dict[ImageFormat, tuple[int, ...]] = {"png": (1, 3, 4), "jpg": (1, 3)}
"""Channels that a picture format can hold; npy holds any number."""

PILLOW_FORMATS: Final = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}
"""What a file of each extension may be inside; anything else is not even looked at."""

PNG_COMPRESSION = 6
"""zlib level. For images this small, levels 1 to 9 take the same time (26,000 images/s of 1×16×16 and 9,000
of 3×32×32 on one core) and 6 gives the smallest files; level 0 is 1.5 times as fast and 10 to 25% larger."""

JPEG_QUALITY = 95

Pixels = NDArray[np.uint8]

MAX_JPEG_SCANS: Final = 256
"""A progressive JPEG has about ten. Each scan goes over the whole picture, so a small file could take hours."""

MAX_NPY_HEADER_BYTES: Final = 10_000
_NPY_PREFIX: Final = re.compile(rb"\x93NUMPY(?:\x01.(?P<short>..)|[\x02\x03].(?P<long>....))", re.DOTALL)
_NPY_ENTRIES: Final = re.compile(
    rb"'descr':'(?P<descr>[^']{1,32})'|'fortran_order':(?P<order>True|False)|'shape':\((?P<shape>[0-9,]*)\)"
)


def check_image_format(image_format: ImageFormat, channels: int) -> None:
    """Raise ``UserError`` if the format cannot hold that many channels."""
    allowed = FORMAT_CHANNELS.get(image_format)
    if allowed is not None and channels not in allowed:
        raise UserError(
            "image_format_cannot_hold_channels",
            f"synthesis.image_format {image_format!r} holds {' or '.join(map(str, allowed))} channels and "
            f"teacher.input.channels is {channels}; use `image_format: npy`",
        )


def encode_image(image: Pixels, image_format: ImageFormat) -> bytes:
    """Encode one image of shape (C, H, W); same pixels, same bytes. ``jpg`` is lossy."""
    buffer = io.BytesIO()
    if image_format == "npy":
        np.lib.format.write_array(buffer, np.ascontiguousarray(image), version=(1, 0), allow_pickle=False)
        return buffer.getvalue()
    picture = to_picture(image)
    if image_format == "png":
        picture.save(buffer, "PNG", compress_level=PNG_COMPRESSION)
    else:
        # Chroma at full resolution: subsampling would halve that of 32-pixel images.
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def to_picture(image: Pixels) -> Image.Image:
    """A Pillow image of an array of shape (C, H, W) with 1, 3 or 4 channels."""
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(pixels))


def decode_image(
    data: bytes, extension: str, shape: tuple[int, int, int], name: str, *, any_size: bool = False
) -> Pixels:
    """Decode one image file to exactly ``shape``, or to its channels alone.

    Args:
        data: content of the file.
        extension: one of ``IMAGE_EXTENSIONS``.
        shape: (C, H, W) that is wanted. Pictures are converted between gray and color; an npy array has
            to be of this shape.
        name: what to call the image in an error.
        any_size: take other heights and widths, as long as the image has no more than ``MAX_IMAGE_VALUES``.

    Raises:
        UserError: ``dataset_wrong_image_size``, ``image_format_cannot_hold_channels`` or
            ``unreadable_dataset``.
    """
    if extension == "npy":
        return _decode_array(data, shape, name, any_size)
    channels = shape[0]
    mode = PILLOW_MODES.get(channels)
    if mode is None:
        raise UserError(
            "image_format_cannot_hold_channels",
            f"{name}: a .{extension} file cannot hold the {channels} channels of teacher.input; store .npy files",
        )
    expected = PILLOW_FORMATS[extension]
    # Pillow takes memory for a whole WebP picture when it opens one, and decodes every scan of a JPEG.
    claimed = _webp_size(data) if expected == "WEBP" else None
    if claimed is not None:
        _check_size((channels, claimed[1], claimed[0]), shape, name, any_size)
    if expected == "JPEG" and data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        raise _unreadable(name, f"has more than {MAX_JPEG_SCANS} scans; save it again")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=[expected]) as picture:
            _check_size((channels, picture.height, picture.width), shape, name, any_size)
            if picture.mode.startswith(("I", "F")):
                raise _unreadable(name, f"has Pillow mode {picture.mode}, more than 8 bits a channel")
            pixels = np.asarray(picture.convert(mode))
    except UserError:
        raise
    except UnidentifiedImageError:
        raise _unreadable(name, f"is no {expected} image inside") from None
    except Exception as error:  # Pillow's decoders fail in many ways: IndexError, struct.error, zlib.error, …
        raise _unreadable(name, f"is no readable .{extension} image ({type(error).__name__}: {error})") from error
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) as the header of a WebP file says; None where it is none."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _decode_array(data: bytes, shape: tuple[int, int, int], name: str, any_size: bool) -> Pixels:
    found, fortran_order, dtype, start = _npy_header(data, name)
    if dtype not in ("|u1", "u1", "<u1", ">u1", "|B", "uint8"):
        raise _unreadable(name, f"has dtype {dtype!r}; store uint8 arrays of shape (channels, height, width)")
    _check_size(found, shape, name, any_size)
    pixels = np.frombuffer(data, np.uint8, offset=start)
    if pixels.size != math.prod(found):
        raise _unreadable(name, f"holds {pixels.size} values where its header promises {math.prod(found)}")
    return pixels.reshape(found, order="F" if fortran_order else "C")


def _npy_header(data: bytes, name: str) -> tuple[tuple[int, ...], bool, str, int]:
    """Shape, whether the order is Fortran's, dtype as written, and where the values begin.

    Not by NumPy, which hands the header to Python's parser: that takes a stranger's nesting as deep as it comes.
    """
    prefix = _NPY_PREFIX.match(data)
    length = int.from_bytes(prefix["short"] or prefix["long"], "little") if prefix else 0
    if prefix is None or length > MAX_NPY_HEADER_BYTES or prefix.end() + length > len(data):
        raise _unreadable(name, "is no readable .npy array")
    text = b"".join(data[prefix.end() : prefix.end() + length].split())
    fields: dict[str, bytes] = {}
    if text[:1] == b"{" and text[-1:] == b"}":
        for entry in _NPY_ENTRIES.finditer(text):
            fields |= {key: value for key, value in entry.groupdict().items() if value is not None}
    if len(fields) != 3:
        raise _unreadable(name, f"is no readable .npy array (its header is {text[:60]!r})")
    sizes = [each for each in fields["shape"].split(b",") if each]
    if any(len(each) > 18 for each in sizes):
        raise _unreadable(name, f"is no readable .npy array (its shape is {fields['shape'][:60]!r})")
    dtype = fields["descr"].decode(errors="replace")
    return tuple(map(int, sizes)), fields["order"] == b"True", dtype, prefix.end() + length


def _check_size(found: tuple[int, ...], shape: tuple[int, int, int], name: str, any_size: bool) -> None:
    """Before anything is decoded: a small file may claim a huge picture."""
    if not any_size:
        if found != shape:
            skipped = int(found[:1] == shape[:1])  # channels are not worth a word where they are right
            raise _wrong_size(name, _times(found[skipped:]), _times(shape[skipped:]))
    elif len(found) != 3 or found[0] != shape[0] or not 0 < math.prod(found) <= MAX_IMAGE_VALUES:
        wanted = f"{shape[0]}×H×W with at most {MAX_IMAGE_VALUES:,} values"
        raise _wrong_size(name, _times(found), wanted)


def _times(sizes: tuple[int, ...]) -> str:
    return "×".join(map(str, sizes[:8])) or "a scalar"


def _wrong_size(name: str, found: str, wanted: str) -> UserError:
    return UserError(
        "dataset_wrong_image_size",
        f"{name} is {found} where teacher.input says {wanted}; resize the images or correct teacher.input",
    )


def _unreadable(name: str, problem: str) -> UserError:
    return UserError("unreadable_dataset", f"{name} {problem}")
