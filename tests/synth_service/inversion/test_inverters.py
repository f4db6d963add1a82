"""Behaviour that every method shares, and what tells them apart."""

from __future__ import annotations

import copy
import io
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.specs import AugmentationSpec, InputSpec
from shared.specs.precision import PrecisionName
from shared.tasks.base import build_task
from shared.tasks.classification import match_targets
from synth_service.inversion import Inverter, Setup, SyntheticBatch, build_inverter
from synth_service.inversion.fast_meta import FastMetaInverter
from synth_service.inversion.generator_inverter import GeneratorInverter
from synth_service.inversion.objective import BestImages, Evaluation
from tests.golden import fill_by_formula
from tests.synth_service.inversion.samples import (
    CPU,
    DEEP,
    DEEP_INVERSION,
    FAST,
    FAST_META,
    GRAY,
    METHODS,
    AnySynthesis,
    SmallNetwork,
    inverter_of,
    targets,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


every_method = pytest.mark.parametrize("spec", METHODS.values(), ids=METHODS.keys())


def rounds(inverter: Inverter[Any], count: int) -> list[SyntheticBatch]:
    return [inverter.invert(targets()) for _ in range(count)]


def images(batches: list[SyntheticBatch]) -> Tensor:
    return torch.stack([batch.images for batch in batches])


def saved(inverter: Inverter[Any]) -> dict[str, Any]:
    """The state after a trip through a file, as the worker sends it."""
    file = io.BytesIO()
    torch.save(inverter.state_dict(), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


@every_method
def test_a_batch_is_complete(spec: AnySynthesis) -> None:
    batch = inverter_of(spec).invert(targets())
    assert (batch.images.shape, batch.images.dtype) == ((8, 1, 16, 16), torch.uint8)
    assert torch.equal(batch.targets, targets())
    top1, confidence = batch.described["teacher_top1"], batch.described["teacher_confidence"]
    assert top1.shape == confidence.shape == (8,)
    assert confidence.dtype == torch.float32
    assert 1 / 3 <= confidence.min() <= confidence.max() <= 1
    assert {"bn", "one_hot", "adversarial"} <= batch.losses.keys()
    assert {len(curve) for curve in batch.loss_history.values()} == {spec.steps}


@every_method
def test_the_seed_decides_every_byte(spec: AnySynthesis) -> None:
    first, again, other = (images(rounds(inverter_of(spec, seed=seed), 2)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


@every_method
def test_torchs_global_random_state_is_not_used(spec: AnySynthesis) -> None:
    teacher = SmallNetwork()
    global_state = torch.get_rng_state()
    setup = Setup(teacher, build_task("classification", 3), GRAY, seed=0, device=CPU)
    build_inverter(spec, setup).invert(targets())
    assert torch.equal(torch.get_rng_state(), global_state)


@every_method
def test_a_restored_inverter_continues_to_the_same_bytes(spec: AnySynthesis) -> None:
    original = inverter_of(spec)
    rounds(original, 2)
    restored = inverter_of(spec)
    restored.load_state_dict(saved(original))
    assert restored.rounds == 2
    assert torch.equal(images(rounds(original, 3)), images(rounds(restored, 3)))
    assert_same(saved(original), saved(restored))


@every_method
@pytest.mark.parametrize("finished", [1, 2], ids=["plain round", "round that resets the first layer"])
def test_an_interrupted_round_can_be_run_again(spec: AnySynthesis, finished: int) -> None:
    undisturbed, interrupted = inverter_of(spec), inverter_of(spec)
    rounds(undisturbed, finished)
    rounds(interrupted, finished)
    calls = iter(range(spec.steps))

    def cancelled_at_the_last_step() -> None:
        if next(calls) == spec.steps - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted.invert(targets(), check=cancelled_at_the_last_step)
    successor = inverter_of(spec)
    successor.load_state_dict(saved(interrupted))
    expected = images(rounds(undisturbed, 2))
    assert torch.equal(images(rounds(interrupted, 2)), expected)
    assert torch.equal(images(rounds(successor, 2)), expected)


def test_before_the_reset_an_interruption_leaves_the_state_untouched() -> None:
    inverter = inverter_of(FAST_META)
    rounds(inverter, 1)
    before = copy.deepcopy(inverter.state_dict())
    with pytest.raises(ZeroDivisionError):
        inverter.invert(targets(), check=iter_raising_after(1))
    assert_same(before, inverter.state_dict())


def iter_raising_after(calls: int) -> Any:
    remaining = iter(range(calls))

    def check() -> None:
        if next(remaining, None) is None:
            raise ZeroDivisionError

    return check


@every_method
def test_both_networks_are_left_as_found(spec: AnySynthesis) -> None:
    teacher, student = SmallNetwork().train(), SmallNetwork()
    teacher.features[1].eval()
    teacher.classifier.weight.requires_grad_(False)
    found = [looks_of(network) for network in (teacher, student)]
    inverter = inverter_of(spec, teacher)
    inverter.use_student(student)
    inverter.invert(targets())
    assert [looks_of(network) for network in (teacher, student)] == found
    with pytest.raises(ZeroDivisionError):
        inverter.invert(targets(), check=iter_raising_after(2))
    assert [looks_of(network) for network in (teacher, student)] == found


def looks_of(network: nn.Module) -> Any:
    return (
        [module.training for module in network.modules()],
        [(p.requires_grad, p.grad is None) for p in network.parameters()],
        [("forward" in vars(m), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()],
        {name: value.tolist() for name, value in network.state_dict().items()},
    )


def test_a_teacher_without_batchnorm_is_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"set synthesis\.bn to 0") as error:
        inverter_of(FAST_META, SmallNetwork(batch_norm=nn.Identity))
    assert error.value.code == "teacher_has_no_batchnorm"


@every_method
def test_without_the_bn_term_such_a_teacher_is_inverted(spec: AnySynthesis) -> None:
    inverter = inverter_of(spec.model_copy(update={"bn": 0}), SmallNetwork(batch_norm=lambda _: nn.Identity()))  # type: ignore[arg-type]
    assert "bn" not in inverter.invert(targets()).losses


def test_the_adversarial_term_needs_a_student_and_a_weight() -> None:
    inverter = inverter_of(FAST_META)
    inverter.use_student(None)
    assert "adversarial" not in inverter.invert(targets()).losses
    assert "adversarial" not in inverter_of(FAST_META.model_copy(update={"adversarial": 0})).invert(targets()).losses


@every_method
def test_a_non_finite_loss_names_round_step_and_term(spec: AnySynthesis) -> None:
    teacher = SmallNetwork()
    inverter = inverter_of(spec, teacher)
    inverter.invert(targets())
    before = copy.deepcopy(inverter.state_dict())
    with torch.no_grad():
        teacher.classifier.bias[0] = torch.nan
    with pytest.raises(UserError, match="round 2, inner step 1: the one_hot loss became nan") as error:
        inverter.invert(targets())
    assert error.value.code == "non_finite_loss"
    assert_same(before, inverter.state_dict())


def test_logits_of_the_wrong_shape_are_refused_with_the_shape_seen() -> None:
    with pytest.raises(UserError, match=r"returned \(8, 5\)") as error:
        inverter_of(FAST_META, SmallNetwork(classes=5)).invert(targets())
    assert error.value.code == "wrong_output_shape"


def test_running_out_of_memory_names_the_batch_size_and_a_smaller_one() -> None:
    class Greedy(SmallNetwork):
        def forward(self, images: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match=r"batch_size is 8.*use 4") as error:
        inverter_of(FAST_META, Greedy()).invert(targets())
    assert error.value.code == "out_of_memory"


def test_padding_wider_than_the_image_is_refused() -> None:
    spec = FAST_META.model_copy(update={"augmentation": AugmentationSpec(crop_padding=17)})
    with pytest.raises(UserError, match=r"synthesis\.augmentation\.crop_padding is 17"):
        inverter_of(spec)


@every_method
def test_the_last_batch_may_be_smaller(spec: AnySynthesis) -> None:
    inverter = inverter_of(spec)
    rounds(inverter, 1)
    assert inverter.invert(targets(3)).images.shape == (3, 1, 16, 16)
    with pytest.raises(ValueError, match="1 to 8 targets, not 9"):
        inverter.invert(targets(9))


@pytest.mark.parametrize("spec", [FAST_META, DEEP, DEEP_INVERSION], ids=["standard", "deep", "deepinversion"])
def test_odd_and_oblong_images_work(spec: AnySynthesis) -> None:
    input = InputSpec(channels=2, height=19, width=10)
    assert inverter_of(spec, input=input).invert(targets()).images.shape == (8, 2, 19, 10)


def test_the_best_step_is_kept_for_each_image_by_itself() -> None:
    best = BestImages(build_task("classification", 2))
    for step, per_image in enumerate([[3.0, 1.0], [2.0, 2.0], [2.5, 0.5]]):
        logits = torch.eye(2).roll(step, 0) * 2
        evaluation = Evaluation(torch.tensor(per_image), {"bn": torch.tensor(0.0)}, logits, torch.tensor([0, 1]))
        best.add(torch.full((2, 1, 1, 1), step / 255), evaluation)
    batch = best.fetch(inverter_of(FAST_META).objective, 1)
    assert batch.images.flatten().tolist() == [1, 2]
    assert batch.described["teacher_top1"].tolist() == [1, 1]


def test_matched_targets_are_the_same_ones_dealt_out_to_the_likeliest_images() -> None:
    logits = torch.tensor([[0.0, 9.0], [5.0, 0.0], [0.0, 1.0], [4.0, 0.0]])
    matched = match_targets(logits, torch.tensor([0, 0, 1, 1]))
    assert matched.tolist() == [1, 0, 1, 0]
    # Three images lean to class 0, but only two may have it: the one that loses least gives way.
    matched = match_targets(torch.tensor([[9.0, 0.0], [8.0, 0.0], [0.5, 0.0], [0.0, 9.0]]), torch.tensor([1, 0, 1, 0]))
    assert matched.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("spec", [FAST_META, FAST], ids=["fast-meta", "fast"])
def test_matching_keeps_the_classes_balanced_and_the_labels_true_to_the_teacher(
    spec: AnySynthesis,
) -> None:
    matching = inverter_of(spec.model_copy(update={"match_targets": True}))
    plain = inverter_of(spec)
    agreed = {}
    for name, inverter in (("matching", matching), ("plain", plain)):
        batches = [inverter.invert(targets()) for _ in range(8)]
        assert all(batch.targets.sort().values.equal(targets().sort().values) for batch in batches)
        agreed[name] = sum(int((batch.targets == batch.described["teacher_top1"]).sum()) for batch in batches)
    assert agreed["matching"] > agreed["plain"]


@every_method
def test_the_mean_of_what_is_compared_per_image_is_the_loss(spec: AnySynthesis) -> None:
    inverter = inverter_of(spec)
    pixels = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with inverter.objective.active():
        evaluation = inverter.objective(pixels, targets())
    expected = sum(getattr(spec, term) * value.item() for term, value in evaluation.terms.items())
    assert evaluation.per_image.mean().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("spec", [FAST, *(s for name, s in METHODS.items() if name.startswith("deep "))])
def test_generator_and_learned_latents_are_carried_over(spec: AnySynthesis) -> None:
    inverter = inverter_of(spec)
    assert isinstance(inverter, GeneratorInverter)
    before = [tensor.detach().clone() for tensor in inverter.lasting]
    inverter.invert(targets())
    assert all((new != old).any() for new, old in zip(inverter.lasting, before, strict=True))
    if spec.method == "fast":
        assert all(torch.equal(kept, end) for kept, end in zip(inverter.lasting, inverter.adapting, strict=True))


def test_the_inner_loop_does_not_touch_the_learned_latents() -> None:
    """The reference detaches them, which shares their storage, so its inner loop overwrites them."""
    inverter = inverter_of(DEEP)
    assert isinstance(inverter, FastMetaInverter)
    assert inverter.learned_latents is not None
    before = inverter.learned_latents.detach().clone()
    with pytest.raises(ZeroDivisionError):
        inverter.invert(targets(), check=iter_raising_after(2))
    assert not torch.equal(inverter.latents, before)
    assert torch.equal(inverter.learned_latents, before)


def test_fomaml_gives_the_learned_latents_a_gradient_and_not_their_value() -> None:
    inverter = inverter_of(DEEP.model_copy(update={"steps": 1}))
    assert isinstance(inverter, FastMetaInverter)
    inverter.invert(targets())
    assert inverter.learned_latents is not None
    assert inverter.learned_latents.grad is not None
    assert inverter.latents.grad is not None
    assert torch.equal(inverter.learned_latents.grad, inverter.latents.grad)


@pytest.mark.parametrize("method", ["fomaml", "reptile", "sequential"])
def test_what_is_carried_over_makes_later_rounds_start_better(method: str) -> None:
    settings = {"reset_first_layer_at_batch": None, "generator_width": 16, "adversarial": 0.0, "steps": 5}
    inverter = inverter_of(METHODS[method].model_copy(update=settings))
    starts = [inverter.invert(targets()).loss_history["bn"][0] for _ in range(16)]
    # No images match this untrained teacher's made-up statistics by much better than 3.2.
    assert starts[0] > 4.5
    assert max(starts[-4:]) < 4.1


def test_deepinversion_lowers_its_loss() -> None:
    history = inverter_of(DEEP_INVERSION.model_copy(update={"steps": 60})).invert(targets()).loss_history
    assert history.keys() == {"one_hot", "bn", "adversarial", "total_variation", "l2"}
    assert history["bn"][0] > 5
    assert history["bn"][-1] < 3.8


def assert_same(first: Any, second: Any) -> None:
    """Equality of nested states, tensors by value."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    elif isinstance(first, Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_networks_give_the_same_images_but_for_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    plain, compiled = inverter_of(FAST_META), inverter_of(FAST_META)
    compiled.compile_networks()
    compiled.use_student(compiled.objective.student)
    before = saved(compiled)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own compiler
        difference = images(rounds(plain, 2)).int() - images(rounds(compiled, 2)).int()
    assert difference.abs().max() <= 1
    assert before.keys() == saved(compiled).keys()
    assert torch._dynamo.utils.counters["frames"]["ok"] >= 2


def test_in_bfloat16_a_round_makes_images_of_the_same_losses_as_in_float32() -> None:
    made: list[tuple[dict[str, float], Tensor]] = []
    precisions: tuple[PrecisionName, ...] = ("float32", "bfloat16", "bfloat16")
    for precision in precisions:
        teacher = SmallNetwork(GRAY.channels).float()
        task = build_task("classification", 3)
        setup = Setup(teacher, task, GRAY, seed=0, device=CPU, precision=precision)
        inverter = build_inverter(FAST_META, setup)
        student = SmallNetwork(GRAY.channels).float()
        fill_by_formula(student, offset=7)
        inverter.use_student(student)
        batch = inverter.invert(targets(8))
        made.append((batch.losses, batch.images))
        state = [value for value in inverter.state_dict()["generator"].values() if value.is_floating_point()]
        assert {value.dtype for value in state} == {torch.float32}
    (losses, images), (reduced, reduced_images), (_, again) = made
    assert reduced == pytest.approx(losses, rel=0.1, abs=0.02)
    # Pixels come from float32: steps of bfloat16 near 1 are as wide as one of the 256 levels.
    assert (reduced_images.int() - images.int()).abs().float().mean() < 3
    assert len(reduced_images.unique()) > 0.8 * len(images.unique())
    assert torch.equal(reduced_images, again)
