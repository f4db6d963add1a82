"""Where files lie: the storage root, names below it, and local files that survive a crash."""

from shared.storage.names import PathOutsideStorage, check_name
from shared.storage.outages import StorageUnavailable
from shared.storage.root import Storage

__all__ = ["PathOutsideStorage", "Storage", "StorageUnavailable", "check_name"]
