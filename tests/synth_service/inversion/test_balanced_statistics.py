"""The balanced BatchNorm term: the same for any teacher, whatever the size of its activations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.synth_service.inversion.samples import FAST_META, SmallNetwork, inverter_of, targets


def test_a_teacher_without_batchnorm_goes_without_the_balanced_term() -> None:
    spec = FAST_META.model_copy(update={"bn_distance": "balanced"})
    inverter = inverter_of(spec, SmallNetwork(batch_norm=lambda _: nn.Identity()))  # type: ignore[arg-type]
    assert "bn" not in inverter.invert(targets()).losses


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_balanced_term_is_the_same_for_a_teacher_of_any_scale(scale: float) -> None:
    """Convolutions and statistics scaled alike are the same network, but for what BatchNorm adds to variances."""
    teacher = SmallNetwork()
    with torch.no_grad():
        for layer in teacher.features:
            if isinstance(layer, nn.Conv2d):
                layer.weight *= scale
                assert layer.bias is not None
                layer.bias *= scale
            if isinstance(layer, nn.BatchNorm2d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                layer.running_mean.mul_(scale)
                layer.running_var.mul_(scale**2)
                layer.eps = 1e-5 * scale**2
    spec = FAST_META.model_copy(update={"bn_distance": "balanced", "adversarial": 0.0})
    losses = inverter_of(spec, teacher).invert(targets()).loss_history["bn"]
    assert losses == pytest.approx(inverter_of(spec).invert(targets()).loss_history["bn"], rel=1e-3)


def test_channels_that_were_constant_in_training_do_not_outweigh_all_others() -> None:
    teacher = SmallNetwork()
    norm = teacher.features[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    norm.running_var[:2] = 0
    spec = FAST_META.model_copy(update={"bn_distance": "balanced"})
    batch = inverter_of(spec, teacher).invert(targets())
    assert all(math.isfinite(value) for value in batch.loss_history["bn"])
