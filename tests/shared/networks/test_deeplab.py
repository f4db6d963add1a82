"""DeepLab networks against DFAD's, Fast-Datafree's and torchvision's: names, shapes and logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.networks.building import build_network
from shared.specs import InputSpec, NetworkSpec
from tests.golden import fill_by_formula, formula_image, load_golden

GOLDEN = load_golden("golden_segmentation")["deeplab"]
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "dfad_deeplabv3_resnet50": ("deeplabv3_resnet50", {"variant": "dfad"}),
    "dfad_deeplabv3_mobilenet": ("deeplabv3_mobilenet_v2", {"variant": "dfad"}),
    "fast_deeplabv3_resnet50": ("deeplabv3_resnet50", {}),
    "fast_deeplabv3_mobilenet": ("deeplabv3_mobilenet_v2", {}),
    "torchvision_deeplabv3_resnet50": ("deeplabv3_resnet50", {"variant": "torchvision"}),
    "fast_deeplabv3_resnet50_output_stride_16": ("deeplabv3_resnet50", {"output_stride": 16}),
    "fast_deeplabv3_mobilenet_output_stride_16": ("deeplabv3_mobilenet_v2", {"output_stride": 16}),
}


def network_of(arch: str, kwargs: dict[str, Any]) -> nn.Module:
    network = build_network(
        NetworkSpec.model_validate({"arch": arch, "kwargs": kwargs}),
        num_classes=13,
        task="semantic-segmentation",
        input=InputSpec(height=64, width=64),
    )
    return filled(network.double().eval())


def filled(network: nn.Module) -> nn.Module:
    """By the formula; 40 million values are worked out once, since only names differ between the ResNet-50s."""
    state = dict(sorted(network.state_dict().items()))
    shapes = tuple(tuple(tensor.shape) for tensor in state.values())
    if shapes not in _FILLED:
        fill_by_formula(network)
        _FILLED[shapes] = [tensor.clone() for tensor in state.values()]
    network.load_state_dict(dict(zip(state, _FILLED[shapes], strict=True)))
    return network


_FILLED: dict[tuple[tuple[int, ...], ...], list[Tensor]] = {}


@pytest.mark.parametrize("name", NETWORKS)
def test_names_dilations_and_logits_are_those_of_the_published_code(name: str) -> None:
    expected = GOLDEN[name]
    network = network_of(*NETWORKS[name])
    shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    assert len(shapes) == expected["num_entries"]
    assert sum(parameter.numel() for parameter in network.parameters()) == expected["num_parameters"]
    if names := expected.get("state_dict"):
        assert shapes == names
    dilated = {
        key: module.dilation[0]
        for key, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.dilation[0] > 1
    }
    assert dilated == expected["conv_dilations_over_1"]
    for size in (64, 65, 320):  # below 320 pixels the widest dilations touch nothing but padding
        # torchvision's is Fast-Datafree's but for names.
        if (values := expected.get(f"image(1,3,{size})")) and not (size == 320 and name.startswith("torchvision")):
            with torch.no_grad():
                compare(network(formula_image(1, 3, size)), values)


def compare(logits: Tensor, expected: dict[str, Any]) -> None:
    assert list(logits.shape) == expected["shape"]
    assert logits.mean().item() == close(expected["mean"])
    assert logits.std().item() == close(expected["std"])
    assert logits[0, :, 0, 0].tolist() == close(expected["out[0,:,0,0]"])
    assert logits[0, :, 31, 17].tolist() == close(expected["out[0,:,31,17]"])
    assert logits[0, 3, 10, :8].tolist() == close(expected["out[0,3,10,:8]"])
    assert torch.bincount(logits.argmax(1).flatten(), minlength=13).tolist() == expected["argmax_counts"]


def test_torchvisions_own_network_gives_the_same_and_its_dictionary_is_unwrapped() -> None:
    spec = NetworkSpec(arch="torchvision:deeplabv3_resnet50")
    input = InputSpec(height=64, width=64)
    network = filled(build_network(spec, num_classes=13, task="semantic-segmentation", input=input).double().eval())
    with torch.no_grad():
        logits = network(formula_image(1, 3, 64))["out"]
    assert logits[0, :, 0, 0].tolist() == close(
        GOLDEN["torchvision_deeplabv3_resnet50"]["image(1,3,64)"]["out[0,:,0,0]"]
    )


def close(expected: Any) -> Any:
    return pytest.approx(expected, rel=1e-6, abs=1e-9)
