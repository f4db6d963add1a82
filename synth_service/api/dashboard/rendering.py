"""Turning templates into pages: ``render``, and how numbers, sizes and times are written everywhere.

Times leave the server as ``<time>`` elements in UTC; ``app.js`` turns them into the reader's zone.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse

from synth_service.api.dashboard.static_files import static_url
from synth_service.api.security.auth import Caller
from synth_service.api.security.sessions import csrf_token

TEMPLATES = Path(__file__).parent / "templates"
NOTHING = "–"
"""Stands where there is no value yet."""

_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def render(
    request: Request, template: str, /, *, status: int = 200, headers: Mapping[str, str] | None = None, **context: Any
) -> HTMLResponse:
    """A page or a part of one.

    Args:
        request: what is being answered; templates see it as ``request``.
        template: file name in ``templates/``.
        status: HTTP status.
        headers: further headers; pages are never cached unless they say so here.
        context: what the template uses.
    """
    return HTMLResponse(
        render_text(request, template, **context), status, headers={"Cache-Control": "no-store", **(headers or {})}
    )


def render_text(request: Request, template: str, /, **context: Any) -> str:
    """``render``, but the HTML alone."""
    return environment.get_template(template).render(request=request, page=_Page(request), **context)


class _Page:
    """What ``base.html`` shows around every page. Looked up when asked for: parts of pages need none of it."""

    def __init__(self, request: Request) -> None:
        self._request = request

    @property
    def path(self) -> str:
        return self._request.url.path

    @property
    def caller(self) -> str | None:
        """Name of the key that the reader signed in with; None where the deployment has no keys."""
        caller: Caller | None = getattr(self._request.state, "caller", None)
        return caller.name if caller else None

    @property
    def csrf_token(self) -> str:
        return csrf_token(self._request)

    @property
    def version(self) -> str:
        return version("fast-dfkd")


def number(value: float | None, digits: int | None = None) -> str:
    """``12,345``, ``0.0123``, ``3.4``: with thousands separated.

    Args:
        value: the number; None gives a dash.
        digits: decimals; without, as many as the size of a fraction deserves and none for integers.
    """
    if value is None:
        return NOTHING
    if digits is None:
        digits = 0 if value == int(value) or abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
        if 0 < abs(value) < 0.1:
            return f"{value:.3g}"
    return f"{value:,.{digits}f}"


def percentage(fraction: float | None, digits: int = 1) -> str:
    """``99.6 %`` for 0.9956; None gives a dash."""
    return NOTHING if fraction is None else f"{100 * fraction:.{digits}f}\u202f%"


def byte_size(value: float | None) -> str:
    """``1.5 MB``: decimal units, as disks are sold."""
    if value is None:
        return NOTHING
    size, unit = float(value), 0
    while round(size, 1) >= 1000 and unit < len(_BYTE_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.0f} B" if unit == 0 else f"{size:.1f} {_BYTE_UNITS[unit]}"


def duration(seconds: float | None) -> str:
    """``0.4 s``, ``42 s``, ``3 min 20 s``, ``2 h 05 min``, ``3 d 4 h``."""
    if seconds is None:
        return NOTHING
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    minutes = whole // 60
    if minutes < 24 * 60:
        return f"{minutes // 60} h" + (f" {minutes % 60:02} min" if minutes % 60 else "")
    return f"{minutes // 1440} d" + (f" {minutes % 1440 // 60} h" if minutes % 1440 // 60 else "")


def remaining(seconds: float | None) -> str:
    """``duration``, only as exact as an estimate is: ``40 s``, ``3 min``, ``2 h 05 min``."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return duration(max(10 * round(seconds / 10), 10))
    return duration(60 * round(seconds / 60))


def moment(unix_seconds: float | None, form: str = "relative") -> Markup:
    """A ``<time>`` that the browser shows in the reader's zone, with the exact time on hover.

    Args:
        unix_seconds: the time; None gives a dash.
        form: ``relative`` (3 min ago), ``exact`` (23 Nov 2026, 14:05:12) or ``clock`` (14:05:12).
    """
    if unix_seconds is None:
        return Markup(NOTHING)  # noqa: S704 -- a constant
    at = datetime.fromtimestamp(unix_seconds, UTC)
    return Markup('<time datetime="{}" data-form="{}">{}</time>').format(
        at.isoformat(timespec="milliseconds"), form, at.strftime("%d %b %Y, %H:%M:%S UTC")
    )


def query(**parameters: object) -> str:
    """``?a=1&b=2`` of the parameters that have a value, encoded; empty when none has."""
    given = {name: value for name, value in parameters.items() if value not in (None, "")}
    return f"?{urlencode(given, doseq=True)}" if given else ""


environment = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
environment.filters |= {
    "number": number,
    "percentage": percentage,
    "bytes": byte_size,
    "duration": duration,
    "eta": remaining,
    "moment": moment,
}
environment.globals |= {"static": static_url, "query": query}
