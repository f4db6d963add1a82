"""The classifiers against the published implementation's numbers."""

import pytest
import torch

from shared.networks.building import build_network
from shared.specs import InputSpec, NetworkSpec
from shared.specs.architectures import ARCHITECTURES
from tests.golden import fill_by_formula, formula_image, load_golden

CLASSIFIERS = load_golden()["classifiers_num_classes_10_input_3x32x32"]


def test_all_published_classifiers_are_here() -> None:
    assert len(CLASSIFIERS) == 16
    assert set(CLASSIFIERS) <= set(ARCHITECTURES)


@pytest.mark.parametrize("arch", CLASSIFIERS)
@torch.no_grad()
def test_names_shapes_and_logits_are_the_published_ones(arch: str) -> None:
    golden = CLASSIFIERS[arch]
    network = build_network(NetworkSpec(arch=arch), num_classes=10, input=InputSpec()).eval().double()
    assert {name: list(value.shape) for name, value in network.state_dict().items()} == golden["state_dict"]
    assert sum(parameter.numel() for parameter in network.parameters()) == golden["num_parameters"]
    fill_by_formula(network)
    logits = network(formula_image(2, 3, 32))
    torch.testing.assert_close(logits, torch.tensor(golden["logits"], dtype=torch.float64), rtol=1e-6, atol=1e-9)
