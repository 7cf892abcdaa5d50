"""Text from outside, such as names and paths, in a form that cannot be mistaken for something else.

It knows nothing about where the text comes from or goes to.  Code that receives such a text calls `one_line` at once,
so that logs, JSON and metrics need no care of their own; the log calls it again for texts that were forgotten.
"""

from __future__ import annotations

import re

# Control characters except the tab, marks that break lines or change the text direction, and surrogates.
_SPECIAL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: str | bytes) -> str:
    r"""Return `text` as one line of valid Unicode, with escapes such as ``\x1b``, ``\n`` and ``\xff`` where needed."""
    if isinstance(text, bytes):
        text = text.decode(errors="backslashreplace")
    return _SPECIAL.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:
        # A byte that is not UTF-8, as Python has it in paths and arguments.
        return f"\\x{code - 0xDC00:02x}"
    return match[0].encode("unicode_escape").decode()
