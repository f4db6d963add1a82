"""Networks of transformers from their configuration: what they answer, and what is refused."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shared.errors import UserError
from shared.networks.building import build_network
from shared.networks.rehearsal import rehearse_training
from shared.networks.weights import load_checkpoint
from shared.specs import InputSpec, NetworkSpec
from shared.tasks.base import build_task

pytest.importorskip("transformers")

RESNET: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
VIT: dict[str, Any] = {
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SEGFORMER: dict[str, Any] = {
    "hidden_sizes": [8] * 4,
    "num_attention_heads": [1] * 4,
    "depths": [1] * 4,
    "decoder_hidden_size": 8,
}


def build(arch: str, *, task: str = "classification", channels: int = 3, side: int = 32, **kwargs: Any) -> nn.Module:
    return build_network(
        NetworkSpec.model_validate({"arch": arch, "kwargs": kwargs}),
        num_classes=7,
        input=InputSpec(channels=channels, height=side, width=side),
        task=task,
    )


def refusal(arch: str, **kwargs: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        build(arch, **kwargs)
    return caught.value


@pytest.mark.parametrize(
    ("arch", "kwargs", "channels"), [("transformers:resnet", RESNET, 1), ("transformers:vit", VIT, 3)]
)
def test_a_classifier_takes_the_images_of_the_job(arch: str, kwargs: dict[str, Any], channels: int) -> None:
    network = build(arch, channels=channels, **kwargs)
    rehearse_training(
        network, task=build_task("classification", 7), input=InputSpec(channels=channels), field="student.arch"
    )
    images = torch.rand(2, channels, 32, 32)
    answer = copy.deepcopy(network).eval()(images)
    assert build_task("classification", 7).logits(answer, images.shape).shape == (2, 7)


def test_a_segmenter_answers_at_the_size_of_the_image_also_when_copied() -> None:
    network = copy.deepcopy(build("transformers:segformer", task="semantic-segmentation", **SEGFORMER))
    assert network.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 7, 32, 32)


def test_weights_that_transformers_saved_give_its_own_answers(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    theirs = ResNetForImageClassification(ResNetConfig(num_labels=7, **RESNET)).eval()
    theirs.save_pretrained(tmp_path)
    ours = build("transformers:resnet", **RESNET).eval()
    load_checkpoint(ours, tmp_path / "model.safetensors", field="teacher.checkpoint")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours(images).logits, theirs(images).logits)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"num_labels": 3}, "kwargs.num_labels is set by the job"),
        ({"attn_implementation": "kernels-community/attention"}, "nothing is downloaded"),
        ({"backbone_config": [{"_attn_implementation": "somebody/kernel"}]}, "`_attn_implementation` is refused"),
        ({"use_pretrained_backbone": True}, "nothing is downloaded"),
        ({"embeding_size": 8}, "did you mean `embedding_size`"),
        ({"layer_type": "round"}, "transformers refused this configuration"),
    ],
)
def test_fields_that_cannot_be_are_refused(kwargs: dict[str, Any], words: str) -> None:
    error = refusal("transformers:resnet", **kwargs)
    assert error.code == "bad_network_arguments"
    assert words in error.message


@pytest.mark.parametrize(
    ("name", "words"), [("resnett", "`resnet`"), ("bert", "no image classifier"), ("timm_wrapper", "timm:NAME")]
)
def test_what_is_no_classifier_is_refused(name: str, words: str) -> None:
    error = refusal(f"transformers:{name}")
    assert error.code == "unknown_architecture"
    assert words in error.message


def test_the_library_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # how Python marks a module as absent
    error = refusal("transformers:resnet")
    assert error.code == "transformers_not_installed"
    assert "fast-dfkd[transformers]" in error.message
