"""Previews: the newest images of a running job as one picture, at a cost that nobody notices.

A synthesis worker keeps a *strip* for its partition, the newest images of each class as small tiles, and stores
it as an ordinary PNG: the tiles one below the other, their classes in a text chunk. The rows of our PNGs are
unfiltered, so whoever wants a grid of tiles can cut strips and paste grids with nothing but zlib: the API has
no imaging library.

The name of a strip holds its attempt and how many images there were, so a strip never changes, and one that a
paused worker writes late is older than its successor's and never shown.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_KEY = b"dfkd-classes"
GAP = 2
SMALLEST_SHOWN = 48
COLOR_TYPES = {1: 0, 3: 2}
"""PNG's numbers for gray and RGB of 8 bits."""


class Tile(NamedTuple):
    """A small image: its rows of 8-bit values, gray or RGB, and the class that it was made for."""

    target: int
    pixels: bytes


class Strip(NamedTuple):
    """Tiles of one size, the newest first."""

    height: int
    width: int
    channels: int
    tiles: tuple[Tile, ...]


def encode_strip(strip: Strip) -> bytes:
    """The strip as a PNG. Raises ValueError for one without tiles."""
    if not strip.tiles:
        raise ValueError("a strip has at least one tile")
    row_bytes = strip.width * strip.channels
    pixels = b"".join(tile.pixels for tile in strip.tiles)
    rows = [pixels[start : start + row_bytes] for start in range(0, len(pixels), row_bytes)]
    text = TEXT_KEY + b"\0" + json.dumps([tile.target for tile in strip.tiles]).encode()
    return _png(rows, strip.width, strip.channels, [(b"tEXt", text)])


def decode_strip(data: bytes) -> Strip:
    """Inverse of ``encode_strip``. Raises ValueError for anything else."""
    try:
        chunks = dict(_chunks(data))
        width, pixel_rows, depth, color_type, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
        channels = {number: channels for channels, number in COLOR_TYPES.items()}[color_type]
        key, _, text = chunks[b"tEXt"].partition(b"\0")
        targets = json.loads(text)
        height = pixel_rows // len(targets)
        row_bytes = width * channels
        rows = zlib.decompress(chunks[b"IDAT"])
        if (depth, key, len(rows)) != (8, TEXT_KEY, pixel_rows * (row_bytes + 1)) or any(rows[:: row_bytes + 1]):
            raise ValueError("not written by encode_strip")
    except (KeyError, struct.error, zlib.error, ZeroDivisionError) as error:
        raise ValueError(f"no strip of tiles: {error!r}") from error
    pixels = b"".join(rows[start + 1 : start + 1 + row_bytes] for start in range(0, len(rows), row_bytes + 1))
    size = height * row_bytes
    tiles = tuple(Tile(int(target), pixels[place * size :][:size]) for place, target in enumerate(targets))
    return Strip(height, width, channels, tiles)


def draw_grid(strip: Strip, *, columns: int) -> bytes:
    """The tiles in rows from left to right on white, small ones enlarged, as a PNG.

    Args:
        strip: with at least one tile.
        columns: tiles in a row.
    """
    channels = strip.channels
    scale = max(1, math.ceil(SMALLEST_SHOWN / max(strip.height, strip.width)))
    columns = min(columns, len(strip.tiles))
    tile_bytes = strip.width * scale * channels
    gap = b"\xff" * (GAP * channels)
    line = b"\xff" * (columns * (tile_bytes + len(gap)) + len(gap))
    blank = b"\xff" * tile_bytes
    rows = [line] * GAP
    for start in range(0, len(strip.tiles), columns):
        shown = [_widened(tile.pixels, channels, scale) for tile in strip.tiles[start : start + columns]]
        for y in range(strip.height):
            parts = [pixels[y * tile_bytes : (y + 1) * tile_bytes] for pixels in shown]
            parts += [blank] * (columns - len(shown))
            rows += [gap + gap.join(parts) + gap] * scale
        rows += [line] * GAP
    return _png(rows, len(line) // channels, channels, [])


def merged(strips: Sequence[Strip], *, target: int | None, most: int) -> Strip | None:
    """The newest tiles of several strips, in turn from each.

    Args:
        strips: of one job, so of one size.
        target: only tiles of this class.
        most: tiles in all.

    Returns:
        None when there is no such tile.
    """
    wanted = [[tile for tile in strip.tiles if target in (None, tile.target)] for strip in strips]
    longest = max(map(len, wanted), default=0)
    tiles = [each[place] for place in range(longest) for each in wanted if place < len(each)]
    return strips[0]._replace(tiles=tuple(tiles[:most])) if tiles else None


def _widened(pixels: bytes, channels: int, scale: int) -> bytes:
    """Every pixel repeated along its row. One slice for each byte of the result's pixels, however many there are."""
    if scale == 1:
        return pixels
    wide = bytearray(len(pixels) * scale)
    for channel in range(channels):
        for copy in range(scale):
            wide[copy * channels + channel :: scale * channels] = pixels[channel::channels]
    return bytes(wide)


def _png(rows: Sequence[bytes], width: int, channels: int, more: Iterable[tuple[bytes, bytes]]) -> bytes:
    header = struct.pack(">IIBBBBB", width, len(rows), 8, COLOR_TYPES[channels], 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows), 1)
    chunks = [(b"IHDR", header), *more, (b"IDAT", content), (b"IEND", b"")]
    return SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _chunks(data: bytes) -> Iterable[tuple[bytes, bytes]]:
    if not data.startswith(SIGNATURE):
        raise ValueError("no PNG")
    place = len(SIGNATURE)
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        place += length + 12
