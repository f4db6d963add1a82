"""The synthesis half: one attempt at a partition, from its first image to its last shard."""
