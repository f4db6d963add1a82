"""The distiller: tails a job's shards and trains the student."""
