"""Numbers the authors' published implementation gives, and the formulas of the weights and inputs behind them.

``golden.json`` was computed in float64 with zju-vipa/Fast-Datafree (Fang et al., AAAI 2022). Random weights
would tie a test to one library's generator, so weights and images are formulas that anyone can evaluate;
an independent implementation must then agree to about 1e-6 relative (1e-4 in float32). It holds:

* ``classifiers_num_classes_10_input_3x32x32``: per network the ``state_dict`` names and shapes, the number of
  parameters and the logits of ``formula_image(2, 3, 32)`` in eval mode.
* ``generators_train_mode``: names, shapes and output statistics of both generators.
* ``losses``: the knowledge-distillation, Jensen-Shannon, total-variation and class-balance losses.
* ``meta_rounds``: two consecutive rounds of Algorithm 1 with everything random pinned.

``golden_methods.json`` continues it with numbers of further public research code:

* ``cifar_meta_rounds_active_adversary``: the meta rounds with a student that sometimes agrees with the teacher.
* ``imagenet_meta_rounds``: three rounds of Fast-50's form with learned latents and small outer steps.
* ``sre2l_cda``: every iteration of SRe2L and CDA, and CDA's curriculum of crops.
* ``psaq_vit``: the entropy of patch similarities.
* ``deepinversion``: every iteration of both published forms of DeepInversion.

``golden_segmentation.json``: DeepLab networks, the mIoU of label maps and DFAD's steps on a segmentation network.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@functools.cache
def load_golden(name: str = "golden") -> dict[str, Any]:
    """A whole file. It is cached and shared, so do not change what is returned."""
    golden: dict[str, Any] = json.loads(Path(__file__).with_name(f"{name}.json").read_text(encoding="utf-8"))
    return golden


@torch.no_grad()
def fill_by_formula(network: nn.Module, offset: float = 0) -> None:
    """Overwrite every tensor of the ``state_dict`` with the value of the golden file's formula.

    Tensor number k, counted in sorted-name order over *all* entries, and its flat index i give
    ``h = sin(12.9898·i + 78.233·(k+1) + offset)·43758.5453`` and ``w = 2·frac(h) − 1``. The hash amplifies
    rounding errors, so h is always computed in float64 and cast at the end.
    """
    for number, (name, tensor) in enumerate(sorted(network.state_dict().items())):
        if name.endswith("num_batches_tracked"):
            tensor.zero_()
            continue
        index = torch.arange(tensor.numel(), dtype=torch.float64)
        hashed = torch.sin(12.9898 * index + 78.233 * (number + 1) + offset) * 43758.5453
        values = (2 * (hashed - hashed.floor()) - 1).reshape(tensor.shape)
        if tensor.ndim > 1:
            values *= (3 / tensor[0].numel()) ** 0.5
        elif name.endswith("running_var"):
            values = 1 + 0.5 * values
        elif name.endswith("weight"):
            values = 1 + 0.1 * values
        else:
            values *= 0.1
        tensor.copy_(values)


@torch.no_grad()
def blend_by_formula(network: nn.Module, share: float) -> None:
    """``(1 - share)·fill(0) + share·fill(7)`` of every floating entry."""
    fill_by_formula(network, 7)
    other = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fill_by_formula(network, 0)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_((1 - share) * tensor + share * other[name])


def formula_latent(shape: tuple[int, ...], draw: int) -> Tensor:
    """``sin(0.11·i + draw)``, float64."""
    return torch.sin(0.11 * torch.arange(math.prod(shape), dtype=torch.float64) + draw).reshape(shape)


def formula_image(images: int, channels: int, size: int) -> Tensor:
    """Images (images, channels, size, size) in [0, 1], float64: ``0.5 + 0.5·sin(0.013·i + 0.1·√i)``."""
    index = torch.arange(images * channels * size * size, dtype=torch.float64)
    return (0.5 + 0.5 * torch.sin(0.013 * index + 0.1 * index.sqrt())).reshape(images, channels, size, size)
