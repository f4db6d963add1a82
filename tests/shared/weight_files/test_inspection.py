"""What the API says of a checkpoint without torch, held against what torch says."""

import contextlib
import io
import pickle
import random
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._weights_only_unpickler import _get_allowed_globals

from shared.errors import UserError
from shared.networks.weights import load_checkpoint
from shared.weight_files import allow_list as torch_imports
from shared.weight_files import pickles as torch_files
from shared.weight_files.inspection import CheckpointContent, TensorEntry, UnreadableFile, UnsafePickle, inspect
from tests.attack.checkpoints import GOOD, archive, checkpoints, legacy, mapping, pickled, tensor
from tests.shared.networks.test_weights import Malice, network

HOSTILE = checkpoints()
HARMLESS = (
    "zip: a shape that its storage has not",
    "zip: a storage that is not there",
    "legacy: a shape that its storage has not",
    "legacy: a storage that is not there",
    "zip: no folder",
    "safetensors: metadata that is a number",
)
"""What is looked into does not tell that they cannot be loaded; the worker then says so."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights"


def assert_is_of(content: CheckpointContent, weights: dict[str, Tensor]) -> None:
    assert {each.name: each.shape for each in content.tensors} == {n: list(t.shape) for n, t in weights.items()}
    assert content.parameters == sum(tensor.numel() for tensor in weights.values())


def save(weights: Any, path: Path, form: str) -> None:
    if form == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=form == "torch")


@pytest.mark.parametrize("form", ["safetensors", "torch", "torch-legacy"])
def test_names_and_shapes_are_those_that_torch_loads(path: Path, form: str) -> None:
    weights = {**network().state_dict(), "half": torch.zeros(2, dtype=torch.bfloat16), "scalar": torch.tensor(1)}
    save(weights, path, form)
    content = inspect(path)
    assert content.format == form
    assert_is_of(content, weights)
    dtypes = {each.name: each.dtype for each in content.tensors}
    assert (dtypes["half"], dtypes["scalar"], dtypes["fc.weight"]) == ("BF16", "I64", "F32")


DTYPES = (torch.float64, torch.float16, torch.int32, torch.uint8, torch.bool, torch.uint16)
# torch does not write uint16 in its old format.
WRITTEN = [
    (form, dtype)
    for form in ("torch", "torch-legacy", "safetensors")
    for dtype in DTYPES
    if (form, dtype) != ("torch-legacy", torch.uint16)
]


@pytest.mark.parametrize(("form", "dtype"), WRITTEN)
def test_every_dtype_has_its_name(path: Path, dtype: torch.dtype, form: str) -> None:
    save({"a": torch.zeros(3, dtype=dtype)}, path, form)
    safe = path.with_suffix(".safetensors")
    save_file({"a": torch.zeros(3, dtype=dtype)}, safe)
    assert inspect(path).tensors == inspect(safe).tensors


@pytest.mark.parametrize("form", ["torch", "torch-legacy"])
def test_training_checkpoints_are_unwrapped_as_the_loader_does(path: Path, form: str) -> None:
    trained = network()
    optimizer = torch.optim.Adam(trained.parameters())
    trained(torch.rand(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 3,
        "best": 0.5,
        "args": {"lr": 0.1, "tags": {"a", "b"}, "none": None},
        "model": {"state_dict": nn.DataParallel(trained).state_dict()},
        "optimizer": optimizer.state_dict(),
    }
    save(content, path, form)
    assert_is_of(inspect(path), nn.DataParallel(trained).state_dict())
    load_checkpoint(network(), path, field="teacher.checkpoint")


def test_parameters_and_tensors_with_attributes_are_tensors(path: Path) -> None:
    tagged = torch.zeros(2, 3)
    tagged.tag = "x"  # type: ignore[attr-defined]
    torch.save({"parameter": nn.Parameter(torch.zeros(4)), "tagged": tagged}, path)
    assert {each.name: each.shape for each in inspect(path).tensors} == {"parameter": [4], "tagged": [2, 3]}


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle-0", "pickle-2", "pickle-4"])
def test_code_is_refused_and_never_runs(tmp_path: Path, path: Path, form: str) -> None:
    trace = tmp_path / "was-here"
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(Malice(trace), protocol=int(form[-1])))
    else:
        content = {"state_dict": network().state_dict(), "extra": Malice(trace)}
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    expected = UnreadableFile if form == "pickle-0" else UnsafePickle  # which begins like any text
    with pytest.raises(expected, match=None if form in ("pickle-0", "pickle-4") else "mkdir"):
        inspect(path)
    assert not trace.exists()


def test_pickled_modules_and_torchscript_are_refused(path: Path) -> None:
    torch.save(network(), path)
    with pytest.raises(UnsafePickle, match="CifarResNet"):
        inspect(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x/data.pkl", "x/constants.pkl", "x/code/__torch__.py"):
            archive.writestr(name, pickle.dumps({}, protocol=2))
    with pytest.raises(UnsafePickle, match="TorchScript"):
        inspect(path)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("form", ["TorchScript", "torch.export"])
def test_a_whole_program_is_refused_with_the_line_that_takes_its_weights_out(tmp_path: Path, form: str) -> None:
    path = tmp_path / "program.pt2"
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    if form == "TorchScript":
        torch.jit.save(torch.jit.script(small), path)
    else:
        torch.export.save(torch.export.export(small, (torch.zeros(2, 3, 8, 8),)), path)
    with pytest.raises((UnreadableFile, UnsafePickle), match=form) as caught:
        inspect(path)
    assert isinstance(caught.value, UnreadableFile | UnsafePickle)
    assert caught.value.remedy is not None
    line = caught.value.remedy.partition(": ")[2].replace("'weights.pt'", "weights")
    weights = tmp_path / "weights.pt"
    exec(line, {"torch": torch, "path": path, "weights": weights})
    assert [each.name for each in inspect(weights).tensors] == list(small.state_dict())
    with pytest.raises(UserError, match=r"Take the weights out of it: torch\.save"):
        load_checkpoint(small, path, field="teacher.checkpoint")
    load_checkpoint(small, weights, field="teacher.checkpoint")


def test_the_names_are_those_that_torch_would_import() -> None:
    def is_allowed(name: str) -> bool:
        try:
            torch_files._imported(*name.rsplit(".", 1))
        except UnsafePickle:
            return False
        return True

    ours = {name for name in torch_imports.IMPORTS if not name.startswith("torch.cuda.")}
    assert ours <= set(_get_allowed_globals())
    assert all(map(is_allowed, _get_allowed_globals()))
    for name in (
        "os.system",
        "builtins.eval",
        "torch.load",
        "torch.hub.load",
        "torch._utils.os",
        "torch.nn.Module",
        "torch.storage._load_from_bytes",
        "numpy.core.multiarray._reconstruct",
        "torch.Tensor.numpy",
    ):
        assert not is_allowed(name), name


@pytest.mark.parametrize("form", ["safetensors", "torch", "torch-legacy"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3])
def test_a_file_that_is_cut_short_is_unreadable(path: Path, form: str, share: float) -> None:
    save(network().state_dict(), path, form)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    if form == "torch-legacy" and share == 0.3:
        inspect(path)  # its data is missing, which only reading all of it would tell
    else:
        with pytest.raises(UnreadableFile):
            inspect(path)


@pytest.mark.parametrize("form", ["safetensors", "torch", "torch-legacy"])
def test_damage_is_never_anything_but_a_refusal(path: Path, form: str) -> None:
    save(network().state_dict(), path, form)
    whole = path.read_bytes()
    generator = random.Random(0)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 30)):
            data[min(int(generator.expovariate(1 / 3000)), len(data) - 1)] = generator.randrange(256)
        path.write_bytes(data)
        # Anything else that is raised fails the test.
        with contextlib.suppress(UnreadableFile, UnsafePickle):
            inspect(path)


@pytest.mark.parametrize("content", [b"", b"hello world", b"\x89PNG\r\n\x1a\n" + bytes(99), b"PK\x03\x04" + bytes(99)])
def test_other_files_are_unreadable(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(UnreadableFile):
        inspect(path)


@pytest.mark.parametrize(
    "content", [{}, [1, 2], torch.zeros(3), {"epoch": 3}, {"a": torch.zeros(2).to_sparse()}, {"a": torch.zeros(1) * 1j}]
)
def test_what_holds_no_weights_is_refused_as_the_loader_does(path: Path, content: Any) -> None:
    torch.save(content, path)
    with pytest.raises(UnreadableFile):
        inspect(path)
    with pytest.raises(UserError):
        load_checkpoint(network(), path, field="teacher.checkpoint")


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        "{}",
        '{"a": 1}',
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "X", "shape": [2], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}',
        '{"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}, "b": {"dtype": "U8", "shape": [8], '
        '"data_offsets": [0, 8]}}',
        "{" * 500,
    ],
)
def test_a_safetensors_header_that_lies_is_refused(path: Path, header: str) -> None:
    text = header.encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(UnreadableFile):
        inspect(path)


def bomb(kind: str) -> bytes:
    """Pickles that cost an unpickler far more than their own length."""
    if kind == "many objects":
        return b"\x80\x02" + b"}" * 2_000_000 + b"."
    if kind == "nested keys":
        return b"\x80\x02}" + b")" + b"\x85" * 900_000 + b"K\x01s."
    if kind == "copies":
        calls = b"ccollections\nOrderedDict\nh\x00\x85R" * 200_000
        return b"\x80\x02]q\x00(" + b"]" * 100_000 + b"e" + calls + b"."
    assert kind == "wide calls"
    calls = b"ctorch._utils\n_rebuild_tensor\nh\x00R" * 100_000
    return b"\x80\x02(" + b"K\x01" * 300_000 + b"tq\x00" + calls + b"."


@pytest.mark.parametrize("kind", ["many objects", "nested keys", "copies", "wide calls"])
def test_a_pickle_that_would_fill_the_memory_or_take_for_ever_does_neither(path: Path, kind: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", bomb(kind))
    started = time.process_time()
    with pytest.raises((UnreadableFile, UnsafePickle)):
        inspect(path)
    assert time.process_time() - started < 20


def test_a_pickle_of_many_bytes_is_not_unpacked(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(50_000_000))
    with pytest.raises(UnreadableFile, match="32 times"):
        inspect(path)


def test_items_that_python_2_wrote_are_read(path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, buffer, _use_new_zipfile_serialization=False)
    assert torch_files._ordered(([["a", 1], ["b", 2]],)) == {"a": 1, "b": 2}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_checkpoint_is_refused_in_little_time_and_memory(path: Path, what: str) -> None:
    path.write_bytes(HOSTILE[what])
    started = time.process_time()
    if what in HARMLESS:
        assert len(inspect(path).tensors) == 1
    else:
        with pytest.raises((UnreadableFile, UnsafePickle)) as caught:
            inspect(path)
        assert len(str(caught.value)) < 500
        assert str(caught.value).isprintable()
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    "what",
    ["zip: many tensors of one", "zip: many objects", "safetensors: a million numbers", "zip: a million entries"],
)
def test_a_checkpoint_of_many_things_takes_little_memory(path: Path, what: str) -> None:
    path.write_bytes(HOSTILE[what])
    tracemalloc.start()
    with pytest.raises((UnreadableFile, UnsafePickle)):
        inspect(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40_000_000


@pytest.mark.parametrize("form", [archive, legacy])
def test_what_the_attacks_vary_is_a_checkpoint(path: Path, form: Callable[[bytes], bytes]) -> None:
    path.write_bytes(form(GOOD))
    assert inspect(path).tensors == [TensorEntry(name="fc.weight", dtype="F32", shape=[2, 2])]
    assert torch.load(path, weights_only=True)["fc.weight"].shape == (2, 2)


def test_sizes_are_those_that_a_file_can_hold(path: Path) -> None:
    path.write_bytes(archive(pickled(mapping({"a": tensor(2**48), "b": tensor(0, 2**48), "c": tensor()}))))
    assert [each.shape for each in inspect(path).tensors] == [[2**48], [0, 2**48], []]
