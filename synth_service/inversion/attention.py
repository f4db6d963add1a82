"""What a vision transformer knows of its training data, without BatchNorm: how its patches resemble each other.

On a photograph some patches of an attention block's output are alike and others are not; on noise all are alike.
PSAQ-ViT (Li et al., ECCV 2022) therefore maximizes the entropy of the distribution of their similarities.
``AttentionEntropy`` measures it in every block of DeiT, ViT and Swin as timm and torchvision write them.

Fused attention never shows its output to a hook, and torchvision's blocks call functions rather than modules. But
every block multiplies that output with the weight of its last projection, so that is where it is observed: while a
round runs, ``F.linear`` with one of these weights tells its input. ``nn.MultiheadAttention`` does even that within one
function, so it is evaluated here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from shared.errors import UserError
from synth_service.inversion.terms import Forward, LossTerm

BANDWIDTH = 0.01
POINTS = 10
ADDED_TO_DENSITY = 1e-4


@dataclass(frozen=True)
class Block:
    """One attention block: how to read what enters its last projection."""

    index: int
    heads: int
    prefix_tokens: int
    """Class and register tokens, which are no patches."""


def attention_blocks(network: nn.Module) -> dict[int, Block]:
    """The blocks of a network by the identity of their last projection's weight, in module order.

    Args:
        network: a vision transformer, or anything else, which has none.
    """
    blocks: dict[int, Block] = {}
    prefix_tokens = _prefix_tokens(network)
    for module in network.modules():
        projection: Any = None
        if _is_plain(module):
            projection = module.out_proj
        elif hasattr(module, "qkv") and isinstance(getattr(module, "num_heads", None), int):
            projection = getattr(module, "proj", None)
        if isinstance(projection, nn.Linear):
            prefix = 0 if hasattr(module, "window_size") else prefix_tokens  # a window holds patches alone
            blocks[id(projection.weight)] = Block(len(blocks), int(getattr(module, "num_heads")), prefix)  # noqa: B009
    return blocks


def _is_plain(module: nn.Module) -> bool:
    """Whether ``_attend`` says what this module would say to one sequence of tokens."""
    return (
        isinstance(module, nn.MultiheadAttention)
        and module.batch_first
        and module.in_proj_weight is not None
        and module.bias_k is None
        and not module.add_zero_attn
    )


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> tuple[Tensor, Tensor | None]:
    """``nn.MultiheadAttention.forward`` in eval mode, with a last projection that can be observed."""
    masks = (options.get("key_padding_mask"), options.get("attn_mask"))
    if query is not key or key is not value or any(mask is not None for mask in masks):
        result: tuple[Tensor, Tensor | None] = type(module).forward(module, query, key, value, **options)
        return result
    projected = F.linear(query, module.in_proj_weight, module.in_proj_bias).chunk(3, -1)
    heads = [each.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for each in projected]
    attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    return F.linear(attended, module.out_proj.weight, module.out_proj.bias), None


def _prefix_tokens(network: nn.Module) -> int:
    for module in network.modules():
        count = getattr(module, "num_prefix_tokens", None)  # timm
        if isinstance(count, int):
            return count
        if isinstance(getattr(module, "class_token", None), Tensor):  # torchvision
            return 1
    return 0


class _Observation(TorchFunctionMode):
    """Tells the inputs of certain products with weights."""

    def __init__(self, blocks: Mapping[int, Block], tell: Callable[[Block, Tensor], None]) -> None:
        super().__init__()
        self._blocks = blocks
        self._tell = tell

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            weight = args[1] if len(args) > 1 else kwargs.get("weight")
            block = self._blocks.get(id(weight))
            if block is not None:
                self._tell(block, args[0])
        return func(*args, **kwargs)


class AttentionEntropy(LossTerm):
    """Minus the entropy of patch similarities, summed over the blocks of the teacher.

    Args:
        weight: of the term.
        teacher: a vision transformer.

    Raises:
        UserError: ``teacher_has_no_attention``.
    """

    name = "attention"

    def __init__(self, weight: float, teacher: nn.Module) -> None:
        super().__init__(weight)
        self._teacher = teacher
        self._blocks = attention_blocks(teacher)
        self._observed: dict[int, tuple[Block, Tensor]] = {}
        if not self._blocks:
            raise UserError(
                "teacher_has_no_attention",
                f"synthesis.attention is {weight:g}, but the teacher has no attention block of the form of timm's or "
                "torchvision's ViT, DeiT and Swin; set synthesis.attention to 0",
            )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See the base class."""
        with ExitStack() as stack:
            for module in self._teacher.modules():
                if _is_plain(module):
                    # An instance attribute shadows the method.
                    module.forward = partial(_attend, module)
                    stack.callback(partial(delattr, module, "forward"))
            stack.callback(self._observed.clear)
            stack.enter_context(_Observation(self._blocks, self._note))
            yield

    def _note(self, block: Block, activation: Tensor) -> None:
        self._observed[block.index] = block, activation

    def __call__(self, forward: Forward) -> Tensor:
        """()."""
        entropies = []
        for block, activation in self._observed.values():
            heads = activation.to(forward.teacher_logits.dtype).unflatten(-1, (block.heads, -1))
            patches = heads.mean(-2)[:, block.prefix_tokens :]  # (B, n, d)
            # Each of n² similarities meets each of the points. They are not kept, but made again going backward.
            entropies.append(checkpoint(similarity_entropy, patches, use_reentrant=False, preserve_rng_state=False))
        self._observed.clear()
        return -torch.stack(entropies).sum()


def similarity_entropy(patches: Tensor) -> Tensor:
    """Differential entropy of the cosine similarities between an image's patches; scalar, mean over images.

    The density is estimated with a Gaussian kernel at ten points between the least and the largest similarity of the
    whole batch, which take no gradient, and integrated by trapezoids.

    Args:
        patches: (B, n, d).
    """
    unit = F.normalize(patches, dim=-1, eps=1e-8)
    similarities = (unit @ unit.transpose(1, 2)).flatten(1)  # (B, n²)
    lowest, highest = similarities.detach().aminmax()
    places = torch.linspace(0, 1, POINTS, dtype=similarities.dtype, device=similarities.device)
    points = lowest + (highest - lowest) * places
    height = 1 / (BANDWIDTH * (2 * torch.pi) ** 0.5)
    density = torch.stack(
        [((similarities - point).square() / (-2 * BANDWIDTH**2)).exp().mean(1) for point in points], dim=1
    )
    density = height * density + ADDED_TO_DENSITY
    return torch.trapezoid(-density * density.log(), points).mean()
