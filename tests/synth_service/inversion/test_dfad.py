"""DFAD on a segmentation network against its authors' code: two iterations, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distiller.kd_losses import build_kd_loss
from shared.specs import DFADSynthesis, DistillationSpec, InputSpec
from shared.tasks.base import build_task
from synth_service.inversion import Setup
from synth_service.inversion.dfad import DFADInverter
from synth_service.inversion.generators import build_generator
from tests.golden import fill_by_formula, formula_image, formula_latent, load_golden

GOLDEN = load_golden("golden_segmentation")["dfad_segmentation"]
TASK = build_task("semantic-segmentation", 5, 255)
INPUT = InputSpec(height=32, width=32, mean=(0.5,), std=(0.5,))


class Segmenter(nn.Sequential):
    """The golden file's."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=2, dilation=2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 5, 1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        )
        self.double()


class PinnedInverter(DFADInverter):
    """Latents by formula; ``draws`` counts them."""

    draws = 0

    def draw_latents(self, count: int, random: torch.Generator) -> Tensor:
        self.draws += 1
        return formula_latent((count, 8), self.draws - 1)


def joint_norm(tensors: list[Tensor]) -> float:
    return float(torch.cat([tensor.detach().flatten() for tensor in tensors]).norm())


def test_two_iterations_agree_with_the_published_code() -> None:
    teacher, student = Segmenter(8), Segmenter(4)
    fill_by_formula(teacher)
    fill_by_formula(student, 7)
    expected = GOLDEN["teacher_eval_logits_of_image(2,3,32)"]
    assert teacher.eval()(formula_image(2, 3, 32)).mean().item() == close(expected["mean"])
    spec = DFADSynthesis(batch_size=4, latent_dim=8, generator_width=4, batches_per_generator_step=1)
    inverter = PinnedInverter(spec, Setup(teacher, TASK, INPUT, seed=0, device=torch.device("cpu")))
    fill_by_formula(inverter.generator, 3)
    assert {name: list(t.shape) for name, t in inverter.generator.state_dict().items()} == GOLDEN[
        "generator_state_dict"
    ]
    loss = build_kd_loss(DistillationSpec(loss="l1"), TASK)
    parameters = list(student.parameters())
    sgd = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-5)
    no_chance = torch.Generator()
    for step in GOLDEN["steps_in_order"]:
        if step["kind"] == "student":
            inputs = inverter.objective.normalize(inverter.draw(4, no_chance).detach())
            with torch.no_grad():
                logits = teacher(inputs)
            sgd.zero_grad()
            value = loss(student.train()(inputs), logits)
            value.backward()
            assert joint_norm([p.grad for p in parameters if p.grad is not None]) == close(step["grad_norm"])
            sgd.step()
            assert value.item() == close(step["loss"])
            assert joint_norm(list(parameters)) == close(step["param_norm_after"])
            continue
        # A round hands out a batch before the generator's step; nothing was drawn for that in the published loop.
        inverter.use_student(student)
        inverter.draws -= 1
        with monitored(inverter) as seen:
            inverter.invert(TASK.targets(0, 4))
        assert seen["gradient"] == close(step["grad_norm"])
        assert joint_norm(inverter.parameters) == close(step["param_norm_after"])


class monitored:  # noqa: N801
    """Notes the norm of the generator's gradient before its step."""

    def __init__(self, inverter: DFADInverter) -> None:
        self._inverter = inverter
        self.found: dict[str, float] = {}

    def __enter__(self) -> dict[str, float]:
        def note(*_: Any) -> None:
            gradients = [p.grad for p in self._inverter.parameters if p.grad is not None]
            self.found["gradient"] = joint_norm(gradients)

        self._handle = self._inverter.optimizer.register_step_pre_hook(note)
        return self.found

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def test_at_full_size_the_generator_is_the_published_one() -> None:
    generator = build_generator("dcgan", 256, 64, (3, 128, 128), random=torch.Generator())
    expected = GOLDEN["full_size_generator_nz256_ngf64_img128"]
    assert {name: list(t.shape) for name, t in generator.state_dict().items()} == expected["state_dict"]
    assert sum(p.numel() for p in generator.parameters()) == expected["num_parameters"]


def test_the_student_is_left_with_its_statistics() -> None:
    teacher, student = Segmenter(8), Segmenter(4)
    spec = DFADSynthesis(batch_size=4, latent_dim=8, generator_width=4, batches_per_generator_step=1)
    inverter = DFADInverter(spec, Setup(teacher, TASK, INPUT, seed=0, device=torch.device("cpu")))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    inverter.use_student(student)
    batch = inverter.invert(TASK.targets(0, 4))
    assert batch.losses.keys() == {"adversarial"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def close(expected: Any) -> Any:
    return pytest.approx(expected, rel=1e-6)
