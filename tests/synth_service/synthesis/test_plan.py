"""Every image number exactly once, whatever was quarantined."""

from hypothesis import given
from hypothesis import strategies as st

from shared.broker import SynthesisPosition
from synth_service.synthesis.plan import PartitionPlan
from tests.specs import small_job


def position(**changes: object) -> SynthesisPosition:
    fields = {"next_index": 0, "next_image": 0, "images": 0, "owed": (), "checkpoint": None, **changes}
    return SynthesisPosition(**fields)  # type: ignore[arg-type]


@given(images=st.integers(3, 300), partitions=st.integers(1, 3), batches=st.integers(1, 4), start=st.integers(0, 5))
def test_fresh_and_owed_numbers_make_up_the_partition(images: int, partitions: int, batches: int, start: int) -> None:
    fields = {"num_images": images, "batch_size": 16, "partitions": partitions, "batches_per_shard": batches}
    spec = small_job(synthesis=fields, distillation=None, student=None).synthesis
    assert spec is not None
    for partition in range(partitions):
        total = spec.images_of_partition(partition)
        done = min(total, start * spec.images_per_shard)
        owed = ((0, min(done, spec.images_per_shard)),) if done else ()
        plan = PartitionPlan(spec, partition, position(next_index=start, next_image=done, owed=owed))

        shards = []
        while (shard := plan.next_shard()) is not None:
            shards.append(shard)

        numbers = [number for shard in shards for number in range(shard.first_image, shard.first_image + shard.images)]
        assert sorted(numbers) == [*range(owed[0][1] if owed else 0), *range(done, total)]
        assert [shard.index for shard in shards] == list(range(start, start + len(shards)))
        assert all(shard.images <= spec.images_per_shard for shard in shards)


def test_what_was_quarantined_meanwhile_comes_next() -> None:
    spec = small_job().synthesis
    assert spec is not None
    plan = PartitionPlan(spec, 0, position(next_index=4, next_image=64))
    assert plan.next_shard() is None

    plan.refresh(position(next_index=4, next_image=64, owed=((16, 16),)))

    shard = plan.next_shard()
    assert shard is not None
    assert (shard.index, shard.first_image, shard.images) == (4, 16, 16)
    assert plan.next_shard() is None
