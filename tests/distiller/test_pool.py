from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distiller import image_store
from distiller.pool import ImagePool

CPU = torch.device("cpu")
SHAPE = (1, 4, 4)


def numbered(first: int, count: int) -> Tensor:
    """Images that show their own number, below 256."""
    return torch.arange(first, first + count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, *SHAPE)


def numbers(images: Tensor) -> list[int]:
    assert bool((images == images[:, :1, :1, :1]).all())
    return images[:, 0, 0, 0].tolist()


def filled(count: int, capacity: int = 1000) -> ImagePool:
    pool = ImagePool(capacity, SHAPE, CPU)
    pool.add(numbered(0, count))
    return pool


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_epoch_draws_every_image_once_in_random_order() -> None:
    pool, generator = filled(60), seeded()
    epochs = [[number for _ in range(6) for number in numbers(pool.sample(10, generator))] for _ in range(2)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(60))
    assert epochs[0] != epochs[1] != list(range(60))


def test_batches_are_full_at_the_end_of_an_epoch_and_when_larger_than_the_pool() -> None:
    pool, generator = filled(5), seeded()
    assert pool.sample(0, generator).shape == (0, *SHAPE)
    assert pool.sample(12, generator).shape == (12, *SHAPE)
    drawn = numbers(filled(5).sample(12, seeded()))
    assert sorted(drawn[:5]) == sorted(drawn[5:10]) == list(range(5))


def test_new_images_are_drawn_in_the_next_batch() -> None:
    pool, generator = filled(2), seeded()
    pool.sample(1, generator)
    pool.add(numbered(2, 1))
    assert sorted(numbers(pool.sample(3, generator))) == [0, 1, 2]


def test_a_full_pool_lets_the_oldest_go() -> None:
    pool = filled(7, capacity=10)
    pool.add(numbered(7, 6))
    assert len(pool) == 10
    assert pool.images_seen == 13
    assert sorted(numbers(pool.sample(10, seeded()))) == list(range(3, 13))


@pytest.mark.parametrize("sizes", [[25], [4, 21], [9, 1, 15], [1] * 25])
def test_a_pool_holds_the_newest_however_they_arrive(sizes: list[int]) -> None:
    pool, first = ImagePool(6, SHAPE, CPU), 0
    for size in sizes:
        pool.add(numbered(first, size))
        first += size
    assert sorted(numbers(pool.sample(6, seeded()))) == list(range(19, 25))


def test_draws_do_not_depend_on_how_the_images_were_grouped() -> None:
    """Slots follow from the order of arrival alone, also when one addition exceeds the capacity."""
    at_once, one_by_one = ImagePool(6, SHAPE, CPU), ImagePool(6, SHAPE, CPU)
    at_once.add(numbered(0, 25))
    for number in range(25):
        one_by_one.add(numbered(number, 1))
    assert torch.equal(at_once.sample(6, seeded()), one_by_one.sample(6, seeded()))


def test_memory_follows_the_images_and_not_the_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_store, "FIRST_CHUNK_BYTES", 4 * 16)
    pool = ImagePool(100_000_000, SHAPE, CPU)
    assert pool.nbytes == 0
    for added in range(1, 200):
        pool.add(numbered(added, 1))
        assert added * 16 <= pool.nbytes <= max(2 * added * 16, 4 * 16)


def test_memory_ends_at_the_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_store, "FIRST_CHUNK_BYTES", 4 * 16)
    pool = ImagePool(50, SHAPE, CPU)
    for number in range(120):
        pool.add(numbered(number, 1))
    assert pool.nbytes == 50 * 16


def test_a_pool_of_many_chunks_draws_like_one_of_a_single_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    single = filled(200)
    monkeypatch.setattr(image_store, "FIRST_CHUNK_BYTES", 4 * 16)
    several = filled(200)
    one, other = seeded(), seeded()
    for _ in range(20):
        assert torch.equal(single.sample(33, one), several.sample(33, other))


@pytest.mark.parametrize("added_before_saving", [0, 5])
def test_a_refilled_pool_continues_where_the_state_was_saved(added_before_saving: int) -> None:
    pool, generator = filled(40), seeded()
    for _ in range(7):
        pool.sample(9, generator)
    pool.add(numbered(40, added_before_saving))
    state, generator_state = pool.state_dict(), generator.get_state()
    assert all(not isinstance(value, Tensor) or value.numel() < 10_000 for value in state.values())
    expected = [pool.sample(9, generator) for _ in range(12)]

    successor, its_generator = filled(40 + added_before_saving), torch.Generator()
    its_generator.set_state(generator_state)
    successor.load_state_dict(state)
    for batch in expected:
        assert torch.equal(successor.sample(9, its_generator), batch)


def test_a_pool_that_skips_what_has_given_way_is_the_same() -> None:
    whole, skipping = ImagePool(20, SHAPE, CPU), ImagePool(20, SHAPE, CPU)
    whole.add(numbered(0, 53))
    skipping.skip(31)
    skipping.add(numbered(31, 22))

    assert skipping.images_seen == whole.images_seen
    one, other = seeded(), seeded()
    for _ in range(5):
        assert torch.equal(whole.sample(9, one), skipping.sample(9, other))


def test_the_state_of_a_pool_that_was_never_drawn_from_loads() -> None:
    successor = filled(10)
    successor.load_state_dict(filled(10).state_dict())
    assert torch.equal(successor.sample(4, seeded()), filled(10).sample(4, seeded()))


def test_a_pool_that_could_not_be_refilled_draws_from_what_there_is() -> None:
    pool = filled(40)
    pool.sample(9, seeded())
    successor = filled(30)
    successor.load_state_dict(pool.state_dict())
    assert sorted(numbers(successor.sample(30, seeded()))) == list(range(30))


def test_added_images_are_copied() -> None:
    pool, images = ImagePool(10, SHAPE, CPU), numbered(3, 2).clone()
    pool.add(images)
    images.zero_()
    assert sorted(numbers(pool.sample(2, seeded()))) == [3, 4]


def test_foreign_images_are_refused() -> None:
    pool = ImagePool(10, SHAPE, CPU)
    with pytest.raises(ValueError, match=r"uint8 images of \(1, 4, 4\), not torch.float32"):
        pool.add(torch.zeros(2, *SHAPE))
    with pytest.raises(ValueError, match=r"not torch.uint8 of \(3, 4, 4\)"):
        pool.add(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))


def test_an_empty_pool_cannot_be_drawn_from() -> None:
    with pytest.raises(ValueError, match="empty pool"):
        ImagePool(10, SHAPE, CPU).sample(1, seeded())


def test_a_pool_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="pool_capacity is 0"):
        ImagePool(0, SHAPE, CPU)
