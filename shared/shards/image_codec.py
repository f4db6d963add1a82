"""One image to bytes and back: 8-bit arrays of shape (channels, height, width) as png, jpg, webp or npy.

Files come from outside as well: sizes are compared with what is wanted *before* anything is decoded, so a
small file that claims a huge picture costs nothing, and npy files never run code.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from shared.errors import UserError
from shared.shards.manifest import ImageFormat

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp", "npy")
PILLOW_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's colour mode for a number of channels."""

FORMAT_CHANNELS: dict[ImageFormat, tuple[int, ...]] = {"png": (1, 3, 4), "jpg": (1, 3)}
"""Channels that a picture format can hold; npy holds any number."""

PNG_COMPRESSION = 6
"""zlib level. For images this small, levels 1 to 9 take the same time (26,000 images/s of 1×16×16 and 9,000
of 3×32×32 on one core) and 6 gives the smallest files; level 0 is 1.5 times as fast and 10 to 25% larger."""

JPEG_QUALITY = 95

Pixels = NDArray[np.uint8]


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


def decode_image(data: bytes, extension: str, shape: tuple[int, int, int], name: str) -> Pixels:
    """Decode one image file to exactly ``shape``.

    Args:
        data: content of the file.
        extension: one of ``IMAGE_EXTENSIONS``.
        shape: (C, H, W) that is wanted. Pictures are converted between grey and colour; an npy array has
            to be of this shape.
        name: what to call the image in an error.

    Raises:
        UserError: ``dataset_wrong_image_size``, ``image_format_cannot_hold_channels`` or
            ``unreadable_dataset``.
    """
    if extension == "npy":
        return _decode_array(data, shape, name)
    channels, height, width = shape
    mode = PILLOW_MODES.get(channels)
    if mode is None:
        raise UserError(
            "image_format_cannot_hold_channels",
            f"{name}: a .{extension} file cannot hold the {channels} channels of teacher.input; store .npy files",
        )
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.size != (width, height):
                raise _wrong_size(name, f"{picture.height}×{picture.width}", f"{height}×{width}")
            if picture.mode.startswith(("I", "F")):
                raise _unreadable(name, f"has Pillow mode {picture.mode}, more than 8 bits a channel")
            pixels = np.asarray(picture.convert(mode))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(name, f"is no readable .{extension} image ({error})") from error
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _decode_array(data: bytes, shape: tuple[int, int, int], name: str) -> Pixels:
    buffer = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(buffer)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        found, fortran_order, dtype = read_header(buffer)
    except ValueError as error:
        raise _unreadable(name, f"is no readable .npy array ({error})") from error
    if dtype != np.uint8:
        raise _unreadable(name, f"has dtype {dtype}; store uint8 arrays of shape (channels, height, width)")
    if tuple(found) != shape:
        raise _wrong_size(name, _times(found), _times(shape))
    pixels = np.frombuffer(data, np.uint8, offset=buffer.tell())
    if pixels.size != np.prod(shape):
        raise _unreadable(name, f"holds {pixels.size} values where its header promises {np.prod(shape)}")
    return pixels.reshape(shape, order="F" if fortran_order else "C")


def _times(sizes: tuple[int, ...]) -> str:
    return "×".join(map(str, sizes))


def _wrong_size(name: str, found: str, wanted: str) -> UserError:
    return UserError(
        "dataset_wrong_image_size",
        f"{name} is {found} where teacher.input says {wanted}; resize the images or correct teacher.input",
    )


def _unreadable(name: str, problem: str) -> UserError:
    return UserError("unreadable_dataset", f"{name} {problem}")
