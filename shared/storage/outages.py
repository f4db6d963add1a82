"""A storage that is away, and how that is told from a file that is not there.

Only one answer says that a file does not exist: the storage itself, asked to open it, says so (ENOENT, or 404 for the
key). Everything else, such as a refused connection, 403, 503, a time-out, EIO, ESTALE, EACCES or expired credentials,
says nothing about the file. It passes without anybody's doing or once an operator mends it, so workers wait for it as
for a full disk, and the API answers with 503.
"""

import errno
from typing import Final

from shared.storage.durable_files import is_full

NO_SUCH_FILE: Final = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
"""What opening a name gives that is no file: nothing there, a file for a folder, a folder, a link to itself."""

IN_THE_WAY: Final = (errno.EEXIST, errno.ENOTEMPTY, errno.EFBIG, errno.ENAMETOOLONG)
"""What no waiting mends: of a local file system, that works."""

OF_THE_DISK: Final = (
    errno.EIO,
    errno.ESTALE,
    errno.ENODEV,
    errno.ENXIO,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
    errno.ETIMEDOUT,
)
"""What reading a file that is open already may meet when its disk or network file system is in trouble."""


class StorageUnavailable(OSError):
    """The storage cannot be used at the moment; nothing is known about the file that was asked for.

    Args:
        message: the storage, what was being done and why it failed, for people.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __reduce__(self) -> tuple[type["StorageUnavailable"], tuple[str]]:
        return type(self), (self.message,)


class StorageRefused(StorageUnavailable):
    """The storage answers, and does not let this process in. A rotation of credentials passes; wrong ones do not."""


def will_pass(error: BaseException) -> bool:
    """Whether waiting helps against an error: the storage is full or away, whoever noticed it."""
    if is_full(error) or isinstance(error, StorageUnavailable):
        return True
    return isinstance(error, OSError) and error.errno in OF_THE_DISK


def says_no_such_file(error: BaseException) -> bool:
    """Whether the answer to opening a name says that there is no file of that name."""
    if not isinstance(error, OSError) or isinstance(error, StorageUnavailable):
        return False
    # A bucket that is not there says nothing of its objects: it is another one's, or its name is misspelled.
    answer = getattr(error.__cause__, "response", None)
    if isinstance(answer, dict) and answer.get("Error", {}).get("Code") == "NoSuchBucket":
        return False
    return isinstance(error, FileNotFoundError) or error.errno in NO_SUCH_FILE


def reason(error: BaseException) -> str:
    """An error in a few words, on one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
