"""Which packages of the extras are missing here, and what installs them: for an error in place of a traceback.

The requirements are those of the installed package's own metadata, so there is no second list.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Final

DISTRIBUTION: Final = "fast-dfkd"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXTRA = re.compile(r"""extra\s*==\s*["']([\w-]+)["']""")


class MissingExtra(Exception):
    """Something here needs packages that are not installed; the message names them and the remedy."""


def packages_of(extra: str) -> list[str]:
    """Distributions that an extra asks for on this platform or on another, in the order of the metadata."""
    found = []
    for requirement in requires(DISTRIBUTION) or []:
        named, marker = _NAME.match(requirement), _EXTRA.search(requirement)
        if named and marker and marker[1] == extra and named[0] != DISTRIBUTION and "sys_platform" not in requirement:
            found.append(named[0])
    return found


def missing_packages(extra: str) -> list[str]:
    """Distributions of an extra that are not installed."""
    return [name for name in packages_of(extra) if installed_version(name) is None]


def installed_version(distribution: str) -> str | None:
    """The version that is installed; None for none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def require(what: str, extras: Iterable[str]) -> None:
    """Makes sure that ``what`` can run.

    Raises:
        MissingExtra: packages of the extras are not installed.
    """
    lacking = {extra: missing for extra in extras if (missing := missing_packages(extra))}
    if lacking:
        names = ", ".join(name for missing in lacking.values() for name in missing)
        raise MissingExtra(f"{what} needs {names}; install with: pip install '{DISTRIBUTION}[{','.join(lacking)}]'")


def exit_unless_installed(what: str, extras: Iterable[str]) -> None:
    """Ends the process with 2, and the remedy on stderr, where packages are missing."""
    try:
        require(what, extras)
    except MissingExtra as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 -- the last word of a process that cannot start
        sys.exit(2)
