"""What is said when a network, its task and the images do not go together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.networks.building import build_network, check_shapes
from shared.shards.image_codec import encode_image
from shared.shards.reader import iter_samples
from shared.specs import InputSpec, NetworkSpec
from shared.tasks.base import build_task
from shared.tasks.labels import ClassMaps
from tests.shared.shards.test_reader import tar_of

INPUT = InputSpec(channels=1, height=16, width=16)


def refusal(arch: str, task: str) -> UserError:
    with pytest.raises(UserError) as error:
        build_network(NetworkSpec(arch=arch), num_classes=5, task=task, input=INPUT)
    return error.value


def test_a_classifier_declared_as_segmentation_is_told_apart() -> None:
    error = refusal("resnet8", "semantic-segmentation")
    assert error.code == "wrong_output_shape"
    assert "must return logits of shape (2, 5, 16, 16)" in error.message
    assert "write `teacher.task: classification`" in error.message


def test_a_segmentation_network_declared_as_classifier_is_told_apart() -> None:
    error = refusal("deeplab_tiny", "classification")
    assert error.code == "wrong_output_shape"
    assert "`teacher.task: semantic-segmentation`" in error.message


class InEighths(nn.Module):
    """As U-Nets are: down and up again, and what comes back has to fit beside what went in."""

    def forward(self, images: Tensor) -> Tensor:
        coarse = nn.functional.max_pool2d(images, 8)
        return torch.cat([images, nn.functional.interpolate(coarse, scale_factor=8)], dim=1)


def test_a_size_that_a_network_cannot_take_is_answered_with_one_that_it_can() -> None:
    with pytest.raises(UserError) as error:
        check_shapes(
            InEighths(),
            "my.unet:make",
            task=build_task("semantic-segmentation", 2),
            input=InputSpec(channels=1, height=20, width=36),
        )
    assert error.value.code == "input_not_accepted"
    assert "It takes multiples of 8: set input.height to 24 and input.width to 40" in error.value.message


def test_a_sample_without_its_map_is_named(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", {"x.png": encode_image(np.zeros((1, 5, 7), np.uint8), "png")})
    with pytest.raises(UserError, match=r"a\.tar: x has no \.seg\.png") as error:
        list(iter_samples([path], (1, 5, 7), labels=ClassMaps(4, 255), require_labels=True))
    assert error.value.code == "dataset_without_labels"
