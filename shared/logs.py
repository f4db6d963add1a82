"""Structured logs: JSON lines for machines, colored lines for people, chosen by a setting.

Every line carries what its context is bound to (``structlog.contextvars``): the worker, and while it has a task the
job, partition and attempt; in the API the request. Lines of libraries that use ``logging`` or ``warnings`` come in the
same form. A new thread begins with an empty context, so those that log are started with ``in_this_context``.
"""

import contextvars
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, ParamSpec, TextIO, TypeVar, cast

import structlog

from shared.settings import Settings
from shared.text import visible, visible_line

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

LIBRARIES_LEVEL: Final = logging.WARNING
"""What libraries say below this is of no interest to whoever runs the service."""


class Unfailing:
    """A text stream whose writes never fail: whoever reads a log may go away (``| head``), and nothing but the log
    may suffer from that. What an encoding cannot hold is written as an escape sequence.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes what can be written."""
        with suppress(OSError, ValueError):
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding or "ascii"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flushes what can be flushed."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        """Whether people read it."""
        return self._stream.isatty()


def configure_logging(settings: Settings) -> None:
    """Sends every log line of this process to stderr in the form that the settings ask for."""
    stream = cast(TextIO, Unfailing(sys.stderr))
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    is_json = settings.log_format == "json"
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if is_json
        else structlog.dev.ConsoleRenderer(
            colors=stream.isatty(),
            # The default prints local variables, among which may be a password.
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Tracebacks become text before it is made sure that all text is harmless.
    processors += [structlog.processors.format_exc_info, show_everything]
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    _format_libraries(stream, [*processors, structlog.stdlib.add_logger_name], renderer, max(level, LIBRARIES_LEVEL))


def show_everything(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A processor: what strangers wrote is shown to the reader, on the line it belongs to, and commands nothing."""
    return {name: value if name in _LEFT_ALONE else _shown(value, name) for name, value in event.items()}


_LEFT_ALONE: Final = frozenset({"_record", "_from_structlog", "exc_info"})
"""What structlog keeps for itself in an event."""


def _shown(value: Any, name: str = "", levels: int = 4) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if levels and isinstance(value, Mapping):
        return {visible_line(str(key)): _shown(each, "", levels - 1) for key, each in value.items()}
    if levels and isinstance(value, (list, tuple)):
        return [_shown(each, "", levels - 1) for each in value]
    return visible(str(value)) if name in ("exception", "stack") else visible_line(str(value))


def _format_libraries(
    stream: TextIO, processors: list[structlog.typing.Processor], renderer: structlog.typing.Processor, level: int
) -> None:
    """Gives the lines of ``logging`` and ``warnings`` the same form."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=processors,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)


def in_this_context(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function, to be called in another thread, with log lines that carry what is bound here and now."""
    context = contextvars.copy_context()

    def run(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        return context.run(function, *arguments, **named)

    return run
