"""Random smooth pictures: noise whose spectrum falls with the frequency, as that of natural images does."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def random_fields(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Fields with a spectrum of 1 / frequency to a power from 0.5 to 2.5, more or less colored.

    Args:
        count: how many.
        shape: (C, H, W).
        generator: on the CPU.

    Returns:
        float32 (count, C, H, W) with mean 0; the deviation of a channel is about 1.
    """
    channels, height, width = shape
    frequency = (torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.rfftfreq(width)[None] ** 2).sqrt()
    frequency[0, 0] = math.inf  # no mean
    spectrum = torch.randn(count, channels, *frequency.shape, 2, generator=generator)
    power = 0.5 + 2 * torch.rand(count, 1, 1, 1, generator=generator)
    falling = torch.view_as_complex(spectrum) / frequency**power
    fields: Tensor = torch.fft.irfft2(falling, s=(height, width))
    fields = fields / fields.std((2, 3), keepdim=True).clamp_min(1e-6)
    return fields.lerp(fields[:, :1], torch.rand(count, 1, 1, 1, generator=generator))
