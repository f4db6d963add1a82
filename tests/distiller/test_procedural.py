from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from distiller.dead_leaves import draw
from distiller.pool import ImagePool
from distiller.procedural import FEWEST_IMAGES, TRIES, ProceduralImages, distance_by_image
from distiller.trainer import Trainer
from shared import seeds
from shared.networks.image_operations import Normalization, to_pixels
from shared.specs import AugmentationSpec, DistillationSpec
from shared.specs.earlier import complete
from tests.distiller.toys import CPU, INPUT, TASK, toy_images, toy_network, toy_teacher


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return toy_teacher()


def images_of(teacher: nn.Module, *, seed: int = 0, most: int = 40) -> Tensor:
    return ProceduralImages(INPUT, seed, teacher, CPU, most).prepare()


def normalized(images: Tensor) -> Tensor:
    inputs: Tensor = Normalization(INPUT)(to_pixels(images))
    return inputs


def trainer_of(teacher: nn.Module, share: float, *, student_seed: int = 2) -> Trainer:
    spec = DistillationSpec(
        steps=20, batch_size=16, procedural_share=share, augmentation=AugmentationSpec(crop_padding=1)
    )
    student = toy_network(seed=student_seed)
    return Trainer(spec, student, teacher, task=TASK, input=INPUT, seed=0, device=CPU)


def test_the_same_teacher_and_seed_give_the_same_images(teacher: nn.Module) -> None:
    first, again, other = (images_of(teacher, seed=seed) for seed in (0, 0, 1))

    assert first.shape == (40, *INPUT.shape)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_those_that_fit_the_teacher_are_kept(teacher: nn.Module) -> None:
    kept = images_of(teacher)

    all_of_them = draw(40 * TRIES, INPUT.shape, seeds.generator(0, seeds.PROCEDURAL))
    distances = distance_by_image(teacher, normalized(all_of_them))
    expected = distances.sort().values[:40]
    torch.testing.assert_close(distance_by_image(teacher, normalized(kept)).sort().values, expected)


def test_the_distance_is_that_of_normal_distributions() -> None:
    layer = nn.BatchNorm2d(1, eps=0.0)
    layer.running_mean, layer.running_var = torch.tensor([1.0]), torch.tensor([4.0])
    network = nn.Sequential(layer).eval()
    like_training = torch.tensor([3.0, -1.0, 3.0, -1.0]).view(1, 1, 2, 2)  # mean 1, variance 4
    unlike = torch.tensor([6.0, 4.0, 6.0, 4.0]).view(1, 1, 2, 2)  # mean 5, variance 1

    found = distance_by_image(network, torch.cat([like_training, unlike]))

    small = 4 * 1e-3  # what is added to both variances
    ratio = (1 + small) / (4 + small)
    expected = (ratio - 1 - torch.tensor(ratio).log() + 16 / (4 + small)) / 2
    torch.testing.assert_close(found, torch.stack([torch.tensor(0.0), expected]))


def test_real_images_are_nearer_than_noise(teacher: nn.Module) -> None:
    real = distance_by_image(teacher, normalized(toy_images(64, seed=11)[0]))
    noise = torch.randint(0, 256, (64, *INPUT.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    assert real.median() < distance_by_image(teacher, normalized(noise)).median()


def test_a_layer_after_the_last_pixels_tells_nothing_of_one_image() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8)).eval()

    assert distance_by_image(network, torch.rand(3, 1, 8, 8)).tolist() == [0, 0, 0]


def test_no_more_are_chosen_than_will_be_asked_for(teacher: nn.Module) -> None:
    assert len(images_of(teacher, most=1)) == FEWEST_IMAGES
    assert len(images_of(teacher, most=70)) == 70


def test_a_cancel_is_heard_while_they_are_chosen(teacher: nn.Module) -> None:
    def check() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        trainer_of(teacher, 0.5).prepare(check)


def test_the_teacher_is_left_as_it_was(teacher: nn.Module) -> None:
    before = {name: value.clone() for name, value in teacher.state_dict().items()}

    images_of(teacher)

    assert not teacher.training
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not any(module._forward_pre_hooks for module in teacher.modules())


class Recorder(nn.Module):
    """The teacher, and what it was asked."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher
        self.asked: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.asked.append(images)
        answer: Tensor = self.teacher(images)
        return answer


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 4), (1.0, 16)])
def test_they_join_the_images_from_shards_which_are_so_many_fewer(
    teacher: nn.Module, share: float, expected: int
) -> None:
    spec = DistillationSpec(
        steps=20,
        batch_size=16,
        procedural_share=share,
        augmentation=AugmentationSpec(crop_padding=0, horizontal_flip=False),
    )
    trainer = Trainer(spec, toy_network(seed=2), teacher, task=TASK, input=INPUT, seed=0, device=CPU)
    trainer.teacher = recorder = Recorder(trainer.teacher)
    assert trainer.images_from_shards == 16 - expected
    batch = toy_images(16, seed=3)[0][: 16 - expected]

    trainer.step(batch)

    (asked,) = recorder.asked
    assert len(asked) == 16
    torch.testing.assert_close(asked[: 16 - expected], normalized(batch))
    if expected:
        known = normalized(ProceduralImages(INPUT, 0, teacher, CPU, 20 * expected).prepare())
        apart = (asked[16 - expected :, None] - known).abs().flatten(2).amax(2)
        assert apart.amin(1).max() < 1e-4


def test_a_teacher_without_batch_norm_gets_none() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, TASK.num_classes)).eval()
    trainer = trainer_of(teacher, 1.0)
    assert trainer.images_from_shards == 16
    trainer.teacher = recorder = Recorder(trainer.teacher)
    batch = torch.zeros((16, *INPUT.shape), dtype=torch.uint8)

    trainer.step(batch)

    torch.testing.assert_close(recorder.asked[0], normalized(batch))


def test_a_successor_goes_on_bit_by_bit(teacher: nn.Module) -> None:
    torch.set_num_threads(1)
    pool = ImagePool(100, INPUT.shape, CPU)
    pool.add(toy_images(64, seed=4)[0])
    undisturbed, successor = trainer_of(teacher, 0.5), trainer_of(teacher, 0.5, student_seed=9)
    count = undisturbed.images_from_shards
    batches = [pool.sample(count, torch.Generator().manual_seed(step)) for step in range(6)]
    for batch in batches[:3]:
        undisturbed.step(batch)
    successor.load_state_dict(copy.deepcopy(undisturbed.state_dict()))

    for batch in batches[3:]:
        undisturbed.step(batch)
        successor.step(batch)

    assert undisturbed.metrics() == successor.metrics()
    pairs = zip(undisturbed.student.parameters(), successor.student.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_jobs_of_earlier_versions_stay_without() -> None:
    stored = {"teacher": {}, "distillation": {"steps": 10}}

    assert complete(stored)["distillation"]["procedural_share"] == 0
