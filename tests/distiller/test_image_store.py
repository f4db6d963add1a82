from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import torch
from torch import Tensor

from distiller.image_store import ImageStore
from distiller.pool import ImagePool
from shared.errors import UserError

CPU = torch.device("cpu")
SHAPE = (3, 8, 8)
IMAGE_BYTES = 3 * 8 * 8


class Disk(NamedTuple):
    total: int
    used: int
    free: int


def pictures(first: int, count: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    """Images that no other number has."""
    values = torch.arange(first, first + count).view(-1, 1, 1, 1) * 31 + torch.arange(shape[2])
    return (values % 251).to(torch.uint8).expand(-1, *shape)


def pool_of(images_in_memory: int, folder: Path, capacity: int = 1000, disk: int = 10**9) -> ImagePool:
    return ImagePool(capacity, SHAPE, CPU, memory_bytes=images_in_memory * IMAGE_BYTES, folder=folder, disk_bytes=disk)


@pytest.fixture
def memory_pool() -> ImagePool:
    return ImagePool(1000, SHAPE, CPU)


@pytest.fixture
def disk_pool(tmp_path: Path) -> Iterator[ImagePool]:
    pool = pool_of(10, tmp_path)
    yield pool
    pool.close()


def test_a_pool_on_disk_draws_what_one_in_memory_draws(memory_pool: ImagePool, disk_pool: ImagePool) -> None:
    """Reading ahead changes nothing: not at an epoch's end, nor when images arrive in the middle of one."""
    one, other = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for first, count in ((0, 7), (7, 50), (57, 3), (60, 200)):
        for pool in (memory_pool, disk_pool):
            pool.add(pictures(first, count))
        for size in (16, 16, 16, 5, 300):
            assert torch.equal(memory_pool.sample(size, one), disk_pool.sample(size, other))


def test_a_full_pool_on_disk_lets_the_oldest_go(tmp_path: Path) -> None:
    in_memory, on_disk = ImagePool(40, SHAPE, CPU), pool_of(10, tmp_path, capacity=40)
    for first in range(0, 330, 33):
        for pool in (in_memory, on_disk):
            pool.add(pictures(first, 33))
        drawn = [pool.sample(25, torch.Generator().manual_seed(first)) for pool in (in_memory, on_disk)]
        assert torch.equal(*drawn)
    on_disk.close()


def test_memory_stays_within_its_limit_with_a_pool_ten_times_larger(tmp_path: Path) -> None:
    shape, limit = (3, 224, 224), 16 * 2**20
    pool = ImagePool(10_000, shape, CPU, memory_bytes=limit, folder=tmp_path, disk_bytes=10**9)
    process = psutil.Process()
    batch = torch.zeros(32, *shape, dtype=torch.uint8)
    before, most = process.memory_info().rss, 0
    while pool.images_seen * 3 * 224 * 224 < 10 * limit:
        pool.add(batch)
        most = max(most, process.memory_info().rss)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        pool.sample(32, generator)
        most = max(most, process.memory_info().rss)
    pool.close()
    assert pool.nbytes <= limit
    # The limit itself, two batches (the one in use and the next) and what the allocator keeps: not the ten times more.
    assert most - before < 5 * limit


def test_the_file_has_no_name_and_goes_with_the_pool(tmp_path: Path) -> None:
    pool = pool_of(1, tmp_path)
    pool.add(pictures(0, 100))
    assert list(tmp_path.iterdir()) == []
    pool.close()


def test_a_pool_larger_than_its_limits_is_refused_with_what_would_fit(tmp_path: Path) -> None:
    pool = pool_of(10, tmp_path, disk=50 * IMAGE_BYTES)
    pool.require_room(60)
    with pytest.raises(UserError, match=r"set distillation\.pool_capacity to at most 60") as refused:
        pool.require_room(61)
    assert refused.value.code == "pool_does_not_fit"
    pool.add(pictures(0, 60))
    with pytest.raises(UserError, match="61 images of 3×8×8"):
        pool.add(pictures(60, 1))
    pool.close()


def test_a_pool_larger_than_the_free_disk_space_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(100, 95, 5 * IMAGE_BYTES))
    pool = pool_of(10, tmp_path)
    pool.require_room(15)
    with pytest.raises(UserError, match="where there is room for 5"):
        pool.require_room(16)


def test_the_capacity_counts_and_not_the_images_that_give_way(tmp_path: Path) -> None:
    pool_of(10, tmp_path, capacity=20, disk=10 * IMAGE_BYTES).require_room(10**6)


def test_a_file_that_was_cut_short_is_told(tmp_path: Path) -> None:
    store = ImageStore(SHAPE, 10, memory_bytes=0, folder=tmp_path, disk_bytes=10**6)
    store.write(0, pictures(0, 3))
    with pytest.raises(EOFError, match="before image 7"):
        store.begin_read(torch.tensor([7])).result()
    store.close()
