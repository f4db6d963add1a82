"""A training loop of one's own at the end of a job that is still running."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from shared.broker import Attempt, Broker
from shared.errors import UserError
from shared.jobs import Role
from shared.shards.format import SampleBatch, write_shard
from shared.storage import Storage, job_paths
from synth_service.client import Client, Job, JobNotSucceeded
from tests.shared.samples import batch
from tests.synth_service.api.conftest import claim
from tests.synth_service.client.conftest import job
from tests.waiting import wait_until

SAMPLES = [batch(6, channels=3, seed=number) for number in range(3)]


@pytest.fixture
def made(client: Client) -> Job:
    return client.jobs.create(job(distillation=None, student=None))


def announce(broker: Broker, storage: Storage, tmp_path: Path, attempt: Attempt, index: int) -> str:
    """Writes, seals and announces a real shard; its path in the storage."""
    path, manifest = write_shard(
        tmp_path / "written",
        [SAMPLES[index]],
        job=attempt.job_id,
        partition=0,
        index=index,
        attempt=attempt.number,
        first_image=6 * index,
        image_format="png",
        created_at=1.0,
    )
    folder = job_paths.shards(attempt.job_id)
    storage.put_file(path, f"{folder}/{manifest.name}")
    storage.put_bytes(manifest.model_dump_json().encode(), f"{folder}/{manifest.sidecar_name}")
    broker.shards.announce(attempt, manifest, {})
    return f"{folder}/{manifest.name}"


def announce_two(broker: Broker, storage: Storage, tmp_path: Path) -> list[str]:
    """Names of the first two shards of the one job that waits for synthesis."""
    attempt = claim(broker, Role.SYNTHESIS)
    return [announce(broker, storage, tmp_path, attempt, index) for index in range(2)]


def images_of(samples: list[SampleBatch]) -> np.ndarray:
    return np.concatenate([each.images for each in samples])


def test_a_loop_gets_every_image_once_while_the_job_runs_and_ends_with_it(
    client: Client, broker: Broker, storage: Storage, made: Job, tmp_path: Path
) -> None:
    attempt = claim(broker, Role.SYNTHESIS)
    announce(broker, storage, tmp_path, attempt, 0)
    first_seen = threading.Event()

    def make_the_rest() -> None:
        first_seen.wait(30)
        for index in (1, 2):
            announce(broker, storage, tmp_path, attempt, index)
        broker.leases.finish(attempt, folder_completed=True, result={})

    worker = threading.Thread(target=make_the_rest)
    worker.start()
    images, targets = [], []
    for image, target in made.stream():
        first_seen.set()
        images.append(image)
        targets.append(int(target))
    worker.join()
    np.testing.assert_array_equal(np.stack(images), images_of(SAMPLES))
    assert targets == [int(each) for samples in SAMPLES for each in samples.targets]


def test_an_interrupted_loop_continues_with_the_next_image(
    client: Client, broker: Broker, storage: Storage, made: Job, tmp_path: Path
) -> None:
    announce_two(broker, storage, tmp_path)
    stream = made.stream(follow=False)
    images = iter(stream)
    before = [next(images)[0] for _ in range(8)]
    resumed = made.stream(follow=False)
    resumed.load_state_dict(stream.state_dict())
    after = [image for image, _ in resumed]
    np.testing.assert_array_equal(np.stack([*before, *after]), images_of(SAMPLES[:2]))


def test_batches_and_a_data_loader_give_the_same(
    client: Client, broker: Broker, storage: Storage, made: Job, tmp_path: Path
) -> None:
    announce_two(broker, storage, tmp_path)
    batches = list(made.stream(follow=False).batches(5))
    assert [len(images) for images, _ in batches] == [5, 5, 2]
    loaded = list(DataLoader(made.stream(follow=False).dataset(), batch_size=5))
    for (images, targets), (tensors, labels) in zip(batches, loaded, strict=True):
        assert torch.equal(torch.from_numpy(images), tensors)
        assert targets.tolist() == labels.tolist()
    with pytest.raises(ValueError, match="at least 1"):
        next(made.stream(follow=False).batches(0))


def test_a_shard_that_was_set_aside_is_left_out(
    client: Client, broker: Broker, storage: Storage, made: Job, tmp_path: Path
) -> None:
    gone, _ = announce_two(broker, storage, tmp_path)
    storage.delete(gone)
    assert len(list(made.stream(follow=False))) == 6


def test_the_stream_of_a_job_that_fails_gives_what_there_is_and_then_says_so(
    client: Client, broker: Broker, storage: Storage, made: Job, tmp_path: Path
) -> None:
    attempt = claim(broker, Role.SYNTHESIS)
    announce(broker, storage, tmp_path, attempt, 0)
    images = iter(made.stream())
    seen = [next(images) for _ in range(6)]
    broker.leases.fail(attempt, UserError("non_finite_loss", "it diverged"))
    with pytest.raises(JobNotSucceeded, match="it diverged"):
        list(images)
    assert len(seen) == 6


# -- distillation: external -------------------------------------------------------------------------------


@pytest.fixture
def external(client: Client) -> Job:
    return client.jobs.create(job(distillation="external", student=None))


def consumed(external: Job) -> int | None:
    stage = external.refresh().stages.synthesis
    assert stage is not None
    return stage.shards_consumed


def test_a_shard_is_reported_once_the_loop_has_taken_its_images_and_asks_for_more(
    client: Client, broker: Broker, storage: Storage, external: Job, tmp_path: Path
) -> None:
    announce_two(broker, storage, tmp_path)
    seen = []
    for number, _ in enumerate(external.stream(follow=False), start=1):
        seen.append((number, consumed(external)))
    assert seen == [*((n, 0) for n in range(1, 7)), *((n, 1) for n in range(7, 13))]
    assert consumed(external) == 2


def test_synthesis_and_a_loop_that_stream_each_other_come_to_an_end(
    client: Client, broker: Broker, storage: Storage, external: Job, tmp_path: Path
) -> None:
    attempt = claim(broker, Role.SYNTHESIS)
    ahead: list[int] = []

    def synthesize() -> None:
        for index in range(3):
            wait_until(lambda: broker.shards.backlog(external.id).shards == 0)
            announce(broker, storage, tmp_path, attempt, index)
            ahead.append(broker.shards.backlog(external.id).shards)
        broker.leases.finish(attempt, folder_completed=True, result={})

    worker = threading.Thread(target=synthesize)
    worker.start()
    taken = sum(len(images) for images, _ in external.stream().batches(4))
    worker.join()
    assert taken == 18
    assert max(ahead) <= 1
    assert (consumed(external), external.refresh().state) == (3, "succeeded")


def test_a_loop_that_was_interrupted_before_it_could_report_does_so_when_it_goes_on(
    client: Client, broker: Broker, storage: Storage, external: Job, tmp_path: Path
) -> None:
    attempt = claim(broker, Role.SYNTHESIS)
    announce(broker, storage, tmp_path, attempt, 0)
    resumed = external.stream(follow=False)
    resumed.load_state_dict({"after": client.jobs.shards(external.id)[0].id, "used": 0})
    assert list(resumed) == []
    assert consumed(external) == 1


def test_a_stream_of_another_job_reports_nothing(
    client: Client, broker: Broker, storage: Storage, made: Job, tmp_path: Path
) -> None:
    announce(broker, storage, tmp_path, claim(broker, Role.SYNTHESIS), 0)
    assert len(list(made.stream(follow=False))) == 6
    assert consumed(made) is None
