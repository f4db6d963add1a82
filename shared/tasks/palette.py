"""The colors of classes in label maps: fixed, so that a class looks the same in every shard, grid and page."""

from __future__ import annotations

from functools import cache

UNKNOWN = (255, 255, 255)
"""Of what nobody knows the class of."""


def color_of(label: int) -> tuple[int, int, int]:
    """RGB of a class, as PASCAL VOC has it: the label's bits, three by three, are the colors' bits from the top."""
    channels = [0, 0, 0]
    for place in range(7, -1, -1):
        for channel in range(3):
            channels[channel] |= (label >> channel & 1) << place
        label >>= 3
    return channels[0], channels[1], channels[2]


@cache
def palette(ignore_index: int | None) -> bytes:
    """256 colors for a picture with a palette."""
    colors = [UNKNOWN if label == ignore_index else color_of(label) for label in range(256)]
    return bytes(value for color in colors for value in color)
