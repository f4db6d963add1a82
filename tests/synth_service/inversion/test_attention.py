"""The entropy of patch similarities against PSAQ-ViT's code, and in the transformers of timm and torchvision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import SwinTransformer, VisionTransformer

from shared.errors import UserError
from shared.specs import DeepInversionSynthesis, FastMetaSynthesis, InputSpec
from shared.tasks.base import build_task
from synth_service.inversion import Setup, build_inverter
from synth_service.inversion.attention import AttentionEntropy, attention_blocks, similarity_entropy
from tests.golden import load_golden
from tests.synth_service.inversion.samples import SmallNetwork

CPU = torch.device("cpu")
SMALL = InputSpec(height=32, width=32, mean=(0.5,), std=(0.5,))
GOLDEN = load_golden("golden_methods")["psaq_vit"]


def close(expected: Any) -> Any:
    return pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("case", "scale"), [("B2_heads3_N17_d8_scale1", 1.0), ("B4_heads2_N26_d6_scale5", 5.0)])
def test_the_entropy_and_its_gradient_agree_with_the_published_code(case: str, scale: float) -> None:
    expected = GOLDEN[case]
    images, heads, tokens, size = expected["shape"]
    index = torch.arange(images * heads * tokens * size, dtype=torch.float64)
    values = torch.sin(0.37 * index + 0.01 * index.sqrt() * scale) + 0.5 * torch.cos(0.011 * index) + 0.3
    attention = values.view(images, heads, tokens, size).requires_grad_()

    loss = -similarity_entropy(attention.mean(1)[:, 1:])
    loss.backward()

    assert loss.item() == close(expected["loss = -entropy"])
    assert attention.grad is not None
    assert attention.grad.norm().item() == close(expected["grad_norm_of_loss"])
    assert attention.grad[0, 0, 1, :4].tolist() == close(expected["grad_first_4_of_token_1_head_0"])
    assert attention.grad[:, :, 0].norm().item() == 0


def timm_model(name: str, **arguments: Any) -> nn.Module:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = timm.create_model(name, num_classes=10, **arguments)
    return network.eval()


def vision_transformer() -> nn.Module:
    network: nn.Module = VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=10)
    return network.eval()


def swin_transformer() -> nn.Module:
    network: nn.Module = SwinTransformer([2, 2], 24, [2, 2], [2, 4], [4, 4], num_classes=10)
    return network.eval()


TRANSFORMERS = {
    "timm deit": lambda: timm_model("deit_tiny_patch16_224", img_size=32, patch_size=8, depth=2),
    "timm distilled deit": lambda: timm_model("deit_tiny_distilled_patch16_224", img_size=32, patch_size=8, depth=2),
    "timm vit without a class token": lambda: timm_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, class_token=False, global_pool="avg"
    ),
    "timm swin": lambda: timm_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, depths=(2, 2), num_heads=(2, 4), embed_dim=24
    ),
    "torchvision vit": vision_transformer,
    "torchvision swin": swin_transformer,
}
BLOCKS = {name: 4 if "swin" in name else 2 for name in TRANSFORMERS}
PATCHES = dict.fromkeys(TRANSFORMERS, 16)
"""Of an image, or of a window."""


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_block_shows_its_patches_and_the_network_says_what_it_said(name: str) -> None:
    network = TRANSFORMERS[name]()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    plain = network(images)
    term = AttentionEntropy(1.0, network)
    assert len(attention_blocks(network)) == BLOCKS[name]
    with term.watching():
        logits = network(images.requires_grad_())
        observed = dict(term._observed)
    torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-5)
    assert sorted(observed) == list(range(BLOCKS[name]))
    for block, activation in observed.values():
        assert activation.shape[1] - block.prefix_tokens == PATCHES[name]


def test_the_observed_values_are_attention_times_values() -> None:
    """For the block that computes everything in one function, worked out by hand."""
    layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    term = AttentionEntropy(1.0, layer)
    tokens = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with term.watching():
        layer(tokens, tokens, tokens, need_weights=False)
        ((_, activation),) = term._observed.values()
    query, key, value = nn.functional.linear(tokens, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)

    def split(each: Tensor) -> Tensor:
        heads: Tensor = each.unflatten(-1, (2, 4))
        return heads.transpose(1, 2)

    expected = ((split(query) @ split(key).transpose(2, 3)) / 2).softmax(-1) @ split(value)
    torch.testing.assert_close(activation, expected.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("name", ["timm deit", "torchvision vit", "torchvision swin"])
def test_inversion_raises_the_entropy(name: str) -> None:
    """The term's value is minus the entropy, so it falls."""
    spec = DeepInversionSynthesis.model_validate(
        {"batch_size": 4, "steps": 30, "bn": 0, "attention": 1, "one_hot": 0, "learning_rate": 0.02, "jitter": 0}
    )
    network = TRANSFORMERS[name]()
    setup = Setup(network, build_task("classification", 10), SMALL, 0, CPU)
    history = build_inverter(spec, setup).invert(torch.arange(4)).loss_history["attention"]
    assert min(history[-5:]) < history[0]


def test_a_generator_can_be_learned_from_a_transformer() -> None:
    spec = FastMetaSynthesis.model_validate(
        {"batch_size": 4, "steps": 2, "bn": 0, "attention": 1, "latent_dim": 8, "generator_width": 4, "adversarial": 0}
    )
    setup = Setup(vision_transformer(), build_task("classification", 10), SMALL, 0, CPU)
    batch = build_inverter(spec, setup).invert(torch.arange(4))
    assert set(batch.losses) == {"one_hot", "attention"}


def test_the_variation_approaches_the_goal_of_the_round() -> None:
    spec = DeepInversionSynthesis.model_validate(
        {
            **{"batch_size": 4, "steps": 40, "bn": 0, "one_hot": 0, "scale": "normalized", "l2": 0},
            **{"total_variation": 1, "total_variation_norm": "l2", "total_variation_goal": (1.1, 1.3), "jitter": 0},
        }
    )
    setup = Setup(vision_transformer(), build_task("classification", 10), SMALL, 0, CPU)
    history = build_inverter(spec, setup).invert(torch.arange(4)).loss_history["total_variation"]
    assert min(history) < 0.1 * history[0]


def test_a_network_without_attention_is_told() -> None:
    with pytest.raises(UserError, match=r"synthesis\.attention is 1") as refused:
        AttentionEntropy(1.0, SmallNetwork())
    assert refused.value.code == "teacher_has_no_attention"
