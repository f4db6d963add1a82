"""The floor does the arithmetic of a round: the same layers as often, with the gradients that are needed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.floor import Floor
from benchmarks.synthesis import Rounds, Setting

SMALL = Setting(teacher="wrn16_1", size=8, batch=4, steps=2, generator_width=4)


def layers(network: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules())


def test_the_floor_repeats_every_layer_of_all_three_networks_in_every_step() -> None:
    rounds = Rounds(SMALL, torch.device("cpu"))
    teacher, student, generator = rounds.networks

    counts = rounds.floor().describe()

    calls = SMALL.steps * (layers(teacher) + layers(student) + layers(generator))
    assert counts == {
        "layer_calls_per_round": calls,
        # The first layers too: the image needs its gradient, and the latents theirs.
        "with_input_gradient": calls,
        # Of the frozen networks no weight gets a gradient.
        "with_weight_gradient": SMALL.steps * layers(generator),
    }


def test_each_call_computes_what_autograd_would() -> None:
    floor = Rounds(SMALL, torch.device("cpu")).floor()

    for call in floor.calls:
        needed = [
            tensor.clone().requires_grad_()
            for tensor, wanted in zip((call.input, call.weight, call.bias), call.needs, strict=True)
            if wanted and tensor is not None
        ]
        leaves = iter(needed)
        image, weight, bias = (
            next(leaves) if wanted else tensor
            for tensor, wanted in zip((call.input, call.weight, call.bias), call.needs, strict=True)
        )
        assert image is not None
        assert weight is not None
        if isinstance(call.layer, nn.Linear):
            output = F.linear(image, weight, bias)
        else:
            output = F.conv2d(image, weight, bias, call.layer.stride, call.layer.padding)
        torch.testing.assert_close(call.forward(), output.detach())
        computed = [gradient for gradient in call.backward() if gradient is not None]
        expected = torch.autograd.grad(output, needed, call.output_gradient)
        torch.testing.assert_close(computed, list(expected))


def test_recorded_inputs_keep_the_memory_format_of_the_round() -> None:
    calls = Rounds(SMALL, torch.device("cpu")).floor().calls

    convolutions = [call for call in calls if isinstance(call.layer, nn.Conv2d)]

    assert all(call.input.is_contiguous(memory_format=torch.channels_last) for call in convolutions)


def test_steps_that_differ_are_refused() -> None:
    layer = nn.Linear(2, 2)
    images = torch.zeros(1, 2)

    with pytest.raises(RuntimeError, match="3 layer calls that are not alike"):
        Floor([layer], lambda: [layer(images) for _ in range(3)], steps=2)
