"""Where files lie: the storage root, names below it, and local files that survive a crash."""

from shared.storage.root import PathOutsideStorage, Storage, check_name

__all__ = ["PathOutsideStorage", "Storage", "check_name"]
