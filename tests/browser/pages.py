"""A browser page that watches itself: whatever a reader's browser would complain of fails the test."""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Page, Request

VENDOR = Path(__file__).parent / "vendor"
SERIOUS = frozenset({"serious", "critical"})


class Watch:
    """Notes what goes wrong on a page.

    Args:
        page: before it goes anywhere.
        origin: the only one that the page may talk to.
        expected: what the browser may log of failed requests, since the test is about them: pairs of a part of the
            address and a part of the message, such as ``422`` or ``net::ERR_CONNECTION_REFUSED``.
    """

    def __init__(self, page: Page, origin: str, expected: Collection[tuple[str, str]] = ()) -> None:
        self.complaints: list[str] = []
        self._origin = origin
        self._expected = expected
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.on("request", self._request)

    def check(self) -> None:
        """Fails on the first complaint."""
        assert not self.complaints, self.complaints

    def _console(self, message: ConsoleMessage) -> None:
        # Violations of the Content-Security-Policy are errors on the console too.
        if message.type not in ("error", "warning"):
            return
        url = message.location["url"]
        if any(path in url and failure in message.text for path, failure in self._expected):
            return
        self.complaints.append(f"console {message.type}: {message.text} ({url})")

    def _request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and f"{parts.scheme}://{parts.netloc}" != self._origin:
            self.complaints.append(f"request to another host: {request.url}")


@cache
def _axe() -> str:
    return (VENDOR / "axe.min.js").read_text(encoding="utf-8")


def accessibility_violations(page: Page) -> list[str]:
    """What axe-core finds serious or critical on a page as it is now, one line each."""
    # Evaluated by the debugger, which the Content-Security-Policy does not bind.
    page.evaluate(_axe() + "; 0")
    result: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{each['impact']} {each['id']}: {node['target']} {json.dumps(node.get('failureSummary', ''))[:400]}"
        for each in result["violations"]
        if each["impact"] in SERIOUS
        for node in each["nodes"]
    ]
