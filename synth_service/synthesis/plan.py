"""Which images a synthesis task makes next.

The images of a partition are numbered from 0, and every number is to exist exactly once in a shard that
counts. Fresh numbers follow each other; the numbers of a shard that was quarantined are owed and
come first. Targets follow from the number, so classes are balanced within any run of numbers to ±1.
"""

from collections import deque
from dataclasses import dataclass

from shared.broker import SynthesisPosition
from shared.specs import SynthesisBase


@dataclass(frozen=True)
class ShardPlan:
    """One shard to make: its index in the partition and its run of image numbers."""

    index: int
    first_image: int
    images: int


class PartitionPlan:
    """Hands out shards until every image of the partition is planned.

    Args:
        synthesis: how many images there are and how they are cut into shards.
        partition: number of the partition.
        position: where earlier attempts got to.
    """

    def __init__(self, synthesis: SynthesisBase, partition: int, position: SynthesisPosition) -> None:
        self._per_shard = synthesis.images_per_shard
        self._total = synthesis.images_of_partition(partition)
        self.first_global_image = sum(synthesis.images_of_partition(earlier) for earlier in range(partition))
        self._index = position.next_index
        self._fresh = position.next_image
        self._owed: deque[tuple[int, int]] = deque()
        self.refresh(position)

    def refresh(self, position: SynthesisPosition) -> None:
        """Takes in what was quarantined since. Call it only when every planned shard is announced."""
        self._owed = deque(position.owed)

    def next_shard(self) -> ShardPlan | None:
        """The next shard, or None when everything known to be needed is planned."""
        if self._owed:
            first, images = self._owed.popleft()
        elif self._fresh < self._total:
            first, images = self._fresh, min(self._per_shard, self._total - self._fresh)
            self._fresh += images
        else:
            return None
        plan = ShardPlan(self._index, first, images)
        self._index += 1
        return plan

    def number_in_job(self, image: int) -> int:
        """Number among all images of the job, from which its target follows, of one of this partition."""
        return self.first_global_image + image
