"""Cards that describe a dataset and a student to whoever finds them; the dataset's own is in ``shared.shards``."""
