"""A repository on the Hugging Face hub, and one commit to it. All that speaks to the hub stands here, and blocks.

Token, endpoint and proxies are those of huggingface_hub: ``HF_TOKEN`` or its login, ``HF_ENDPOINT``. Contents are sent
first, and become visible with the commit alone, which names the state of the repository that it is made for: an upload
that is cut leaves the repository as it was, and somebody else's push in between is not overwritten.

The package is imported when something is pushed; it raises errors of a dozen types, which become ``HubError`` here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import quote

from shared.extras import require
from synth_service.client.errors import HubError

MOST_FILES: Final = 25_000
"""In one commit, as the hub says."""

_LOGIN: Final = "set HF_TOKEN to a token with write access, or run `hf auth login`"


class Pushed(NamedTuple):
    """What was pushed."""

    url: str
    """Page of the repository."""
    commit: str
    """Of which the repository's files are now those of the job."""
    files: tuple[str, ...]


class HubRepository:
    """A repository to push to.

    Args:
        name: OWNER/NAME.
        kind: what it holds.
        revision: branch; None for the main one.

    Raises:
        MissingExtra: huggingface_hub is not installed.
        HubError: there can be no such repository.
    """

    def __init__(self, name: str, kind: Literal["dataset", "model"], revision: str | None = None) -> None:
        require("pushing to the Hugging Face hub", ["hub"])
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        self.name = name
        self._kind = kind
        self._revision = revision
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise HubError(f"{name!r} cannot be the name of a repository: {_line(error)}", is_usage=True) from None
        if "/" not in name:
            raise HubError(f"{name!r} names no owner; write OWNER/{name}", is_usage=True)
        self._api = HfApi(library_name="fast-dfkd")
        self._url = ""

    def prepare(self, *, private: bool) -> None:
        """Makes the repository and the branch where they are missing, so that what cannot work is known at once.

        Raises:
            HubError: it cannot be written to, or is public and should not be.
        """
        with self._told():
            made = self._api.create_repo(self.name, repo_type=self._kind, private=private or None, exist_ok=True)
            head = self._head()
        self._url = str(made).rstrip("/")
        if private and not head.private:
            raise HubError(
                f"{self.name} is there already, and public; make it private in its settings on the hub, "
                "push to another name, or leave out --private",
                is_usage=True,
            )

    def commit(self, files: Mapping[str, Path], replaces: re.Pattern[str], message: str) -> Pushed:
        """Makes these the files of the repository, in one commit. Files that are there and the same are not sent.

        Args:
            files: by their names in the repository.
            replaces: names of files of an earlier push, which go unless they are among these. All others stay.
            message: what the history of the repository says.

        Raises:
            HubError: the hub does not take them. The repository is as it was.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        if len(files) > MOST_FILES:
            raise HubError(
                f"{len(files):,} files are more than the {MOST_FILES:,} that the hub takes in one commit; "
                "make the dataset with larger synthesis.batches_per_shard",
                is_usage=True,
            )
        with self._told():
            head = self._head()
            there = self._api.list_repo_files(self.name, revision=head.sha, repo_type=self._kind)
            gone = [name for name in there if replaces.fullmatch(name) and name not in files]
            made = self._api.create_commit(
                self.name,
                [
                    *(CommitOperationDelete(path_in_repo=name, is_folder=False) for name in gone),
                    *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()),
                ],
                commit_message=message,
                repo_type=self._kind,
                revision=self._revision,
                parent_commit=head.sha,
            )
        branch = f"/tree/{quote(self._revision, safe='')}" if self._revision else ""
        return Pushed(self._url + branch, str(made.oid), tuple(sorted(files)))

    def _head(self) -> Any:
        """What the branch is now. A branch that is missing is made of the main one."""
        from huggingface_hub.errors import RevisionNotFoundError

        try:
            return self._api.repo_info(self.name, repo_type=self._kind, revision=self._revision)
        except RevisionNotFoundError:
            if self._revision is None:
                raise
            self._api.create_branch(self.name, branch=self._revision, repo_type=self._kind, exist_ok=True)
            return self._api.repo_info(self.name, repo_type=self._kind, revision=self._revision)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of the network, of the hub, of its two ways to upload: of a dozen types
            raise self._error(error) from error

    def _error(self, error: Exception) -> HubError:
        """What went wrong, and what to do about it."""
        from huggingface_hub import get_token
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        refusal = next((each for each in _causes(error) if isinstance(each, HfHubHTTPError)), None)
        if refusal is None:
            first = list(_causes(error))[-1]
            if isinstance(first, OfflineModeIsEnabled):
                return HubError("HF_HUB_OFFLINE is set, so nothing goes to the hub; unset it", is_usage=True)
            if isinstance(first, JSONDecodeError):
                return HubError(f"{self._api.endpoint} answers as no hub does; correct HF_ENDPOINT", is_usage=True)
            if isinstance(first, ValueError):  # of the dataset card, or of a file
                return HubError(f"{self.name}: {_line(first)}")
            return HubError(
                f"{self._api.endpoint} did not answer ({type(first).__name__}: {_line(first)}); check the network and "
                "HF_ENDPOINT and push again: what has arrived is not sent twice"
            )
        status = refusal.response.status_code
        said = _line(refusal.server_message or refusal)
        if status == 401 and not get_token():
            return HubError(f"the hub wants to know who pushes to {self.name}: {_LOGIN}", is_usage=True)
        if status == 401:
            return HubError(f"the hub does not know your token ({said}): {_LOGIN}", is_usage=True)
        if status == 404:
            return HubError(
                f"your token finds no {self.name} at {self._api.endpoint} ({said}); check the name, the token's access "
                "to it, and HF_ENDPOINT",
                is_usage=True,
            )
        if status == 403:
            return HubError(
                f"your token may not write to {self.name}, or there is no such owner ({said}): write OWNER/NAME with "
                "your own name or that of an organization of yours, and use a token with write access to it",
                is_usage=True,
            )
        if status in (409, 412):
            return HubError(f"{self.name} was changed by somebody else meanwhile ({said}); push again")
        return HubError(f"the hub refused this with {status} ({said})", is_usage=status == 400)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _line(error: object) -> str:
    return " ".join(str(error).split())
