"""What is put around a state_dict comes off, however it is put there."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.networks.building import build_network
from shared.networks.weights import bare_state_dict, load_checkpoint
from shared.specs import InputSpec, NetworkSpec
from shared.weight_files.fingerprints import recognize
from shared.weight_files.inspection import inspect
from shared.weight_files.wrappers import MAX_LEVELS, SeveralNetworks, bare_names, unwrapped


def test_wrappers_in_wrappers_come_off() -> None:
    weights = {"fc.weight": 1}
    assert unwrapped({"epoch": 3, "model": {"state_dict": weights}}) is weights
    assert unwrapped(weights) is weights
    assert unwrapped([weights]) == [weights]


def test_a_mapping_that_contains_itself_ends() -> None:
    itself: dict[str, Any] = {}
    itself["state_dict"] = itself
    assert unwrapped(itself) is itself


def test_there_is_an_end_to_wrappers() -> None:
    content: dict[str, Any] = {"fc.weight": 1}
    for _ in range(MAX_LEVELS + 1):
        content = {"net": content}
    assert unwrapped(content) == {"net": {"fc.weight": 1}}


def a_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_network(NetworkSpec(arch="resnet20"), num_classes=10, input=InputSpec())


def checkpoints() -> dict[str, Any]:
    """What people have, of one network."""
    network, raw = a_network(), a_network(1)
    weights, others = network.state_dict(), raw.state_dict()
    average = torch.optim.swa_utils.AveragedModel(network)
    average.update_parameters(network)
    compiled_part: Any = copy.deepcopy(network)
    compiled_part.layer1 = torch.compile(compiled_part.layer1)
    parallel_part = copy.deepcopy(network)
    parallel_part.layer1 = nn.DataParallel(parallel_part.get_submodule("layer1"))
    thop = {
        f"{name}{'.' if name else ''}{counter}": torch.zeros(1)
        for name, _ in network.named_modules()
        for counter in ("total_ops", "total_params")
    }
    lightning = {f"model.{name}": tensor for name, tensor in weights.items()}
    return {
        "torch's average": average.state_dict(),
        "torch's average in a training state": {"epoch": 3, "model": others, "model_ema": average.state_dict()},
        "thop.profile": {**weights, **thop},
        "one compiled part": compiled_part.state_dict(),
        "one data-parallel part": parallel_part.state_dict(),
        "Lightning": {"state_dict": lightning, "pytorch-lightning_version": "2"},
        "Lightning with more than the network": {"state_dict": {**lightning, "loss.weight": torch.ones(10)}},
        "Lightning, compiled": {"state_dict": {f"model._orig_mod.{name}": each for name, each in weights.items()}},
        "an average alone": {"epoch": 1, "state_dict_ema": weights},
        "an average beside the raw weights": {"state_dict": others, "state_dict_ema": weights},
        "an average that is none": {"state_dict": weights, "ema": {"decay": 0.99, "shadow": [torch.ones(2)]}},
        "an average behind a prefix": {
            **{f"model.{name}": tensor for name, tensor in others.items()},
            **{f"model_ema.{name}": tensor for name, tensor in weights.items()},
        },
    }


@pytest.mark.parametrize("what", checkpoints())
def test_what_people_have_is_loaded_and_recognized_alike(tmp_path: Path, what: str) -> None:
    path = tmp_path / "teacher.pt"
    torch.save(checkpoints()[what], path)
    loaded = a_network(2)
    load_checkpoint(loaded, path, field="teacher.checkpoint")
    meant = bare_state_dict(a_network())
    for name, tensor in bare_state_dict(loaded).items():
        assert torch.equal(tensor, meant[name]), name
    likeness = recognize(inspect(path).tensors)
    assert "resnet20" in likeness.architectures
    assert likeness.num_classes == 10


def test_of_two_networks_none_is_guessed(tmp_path: Path) -> None:
    weights = a_network().state_dict()
    state = {f"{part}.{name}": tensor for part in ("teacher", "student") for name, tensor in weights.items()}
    path = tmp_path / "both.pt"
    torch.save(state, path)
    with pytest.raises(UserError, match=r"several such networks: `student\.`, `teacher\.`"):
        load_checkpoint(a_network(), path, field="teacher.checkpoint")
    assert recognize(inspect(path).tensors).architectures == ()
    with pytest.raises(SeveralNetworks):
        bare_names(state, set(weights).issubset)


def test_a_network_with_parts_of_such_names_keeps_them() -> None:
    own = {"module.total_ops", "module.weight", "n_averaged", "_orig_mod.module.bias"}
    assert bare_names(own, own.issubset) == {name: name for name in own}


def test_names_without_end_are_no_work() -> None:
    names = [f"p{index}.q.weight" for index in range(20_000)]
    asked = []

    def fits(_: Any) -> bool:
        asked.append(1)
        return False

    assert len(bare_names(names, fits)) == len(names)
    assert len(asked) < 20


class WithExtraState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def get_extra_state(self) -> object:
        return {"version": 1}

    def set_extra_state(self, state: object) -> None: ...


@pytest.mark.parametrize("keeps_extra", [True, False])
def test_extra_state_is_no_weight(tmp_path: Path, keeps_extra: bool) -> None:
    state = {k: v for k, v in WithExtraState().state_dict().items() if keeps_extra or isinstance(v, Tensor)}
    path = tmp_path / "teacher.pt"
    torch.save(state, path)
    loaded = WithExtraState()
    load_checkpoint(loaded, path, field="teacher.checkpoint")
    assert torch.equal(loaded.layer.weight, state["layer.weight"])
    assert len(inspect(path).tensors) == 2
    assert set(bare_state_dict(loaded)) == {"layer.weight", "layer.bias"}
