"""The formats: what a log entry looks like, as text for people or as JSON for programs.

An entry is one line of printable Unicode; in text, the lines of a traceback follow it.  This
module knows no particular events; `logs.sinks` writes the entries.
"""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from twisted.logger import formatEvent, formatEventAsClassicLogText, formatTime
from twisted.python.failure import Failure

from fooproxy.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    Format: TypeAlias = Callable[[dict[str, Any]], "str | None"]

_NOT_FIELDS = {
    *("time", "level", "logger", "message", "traceback", "limited"),
    *("format", "system", "isError", "failure", "why"),
}
"""Keys of events that do not become fields: those that an entry always has, those of Twisted's legacy log, the kind."""


def as_text(event: dict[str, Any]) -> str | None:
    """Return an event as Twisted's classic text, without the last newline; `None` if it has no text."""
    text = formatEventAsClassicLogText(event, formatTime)
    if not text:
        return None
    text = text.removesuffix("\n")
    if "log_failure" in event:
        # A traceback keeps its lines, which Twisted has indented.
        return "\n".join(map(one_line, text.split("\n")))
    return one_line(text.replace("\n\t", "\n"))


def as_json(event: dict[str, Any]) -> str | None:
    """Return an event as one flat JSON object; `None` if it has no text.

    The object has the keys ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message`` and perhaps ``traceback``, and
    each value of the message under its own name.
    """
    failure = event.get("log_failure")
    message = formatEvent(event)
    if "log_failure" not in event and event.get("isError"):
        # In an event of Twisted's legacy log, the text ends with the traceback.
        failure, message = event.get("failure"), message.partition("\n")[0]
    if not isinstance(failure, Failure):
        # As with Twisted's own formats, a malformed event still becomes an entry.
        failure = None
    message = message or (failure.getErrorMessage() if failure is not None else "")
    if not message:
        return None
    entry = {
        "time": _rfc3339(event.get("log_time")),
        "level": getattr(event.get("log_level"), "name", "info"),
        "logger": one_line(str(event.get("log_namespace", "-"))),
        "message": one_line(message),
    }
    if failure is not None:
        entry["traceback"] = "\n".join(map(one_line, failure.getTraceback().rstrip("\n").split("\n")))
    for name, value in event.items():
        if not name.startswith("log_") and name not in _NOT_FIELDS:
            entry[one_line(name)] = _field(value)
    return json.dumps(entry, ensure_ascii=False)


FORMATS: dict[str, Format] = {"text": as_text, "json": as_json}
"""The formats by their names."""


def _rfc3339(seconds: Any) -> str:
    moment = datetime.fromtimestamp(seconds or 0.0, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _field(value: object) -> Any:
    """Return a value as a JSON number, string, boolean or null."""
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    try:
        return one_line(str(value))
    except Exception:
        # As Twisted does in a message: the log must not fail because of a value.
        return f"<{type(value).__name__}>"
