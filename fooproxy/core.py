"""The compiled module, `fooproxy._core`, and whether it is used.

The module holds the compiled twins of the code that runs once per chunk: `fooproxy.net.pump` and the counting of
`fooproxy.foo`.  Those two rooms choose a twin by `IS_USED`; nothing else depends on the choice, since the twins behave
identically.  A build without a C compiler lacks the module, and ``FOOPROXY_PURE=1`` in the environment turns it off.
"""

from __future__ import annotations

import os

__all__ = ["IMPLEMENTATION", "IS_USED", "REASON", "core"]

INTERFACE = 5
"""Grows with each change of the compiled module's interface, together with the number in _core.c."""

try:
    import fooproxy._core as core
except ModuleNotFoundError:
    core, _why_not = None, "the compiled core was not built"  # type: ignore[assignment]
except ImportError as error:
    core, _why_not = None, f"the compiled core cannot be loaded: {error}"  # type: ignore[assignment]
else:
    _why_not = "FOOPROXY_PURE is set"
    if getattr(core, "INTERFACE", 0) != INTERFACE:
        raise ImportError(f"{core.__file__} was built from other sources; install fooproxy again (pip install -e .)")

IS_USED = core is not None and os.environ.get("FOOPROXY_PURE", "0") in ("", "0")

IMPLEMENTATION = "compiled" if IS_USED else "pure"
"""The implementation in use, as operators see it: ``compiled`` or ``pure``."""

REASON = "relaying with the compiled core" if IS_USED else f"relaying in pure Python, which costs more CPU: {_why_not}"
"""The implementation as a clause of a log line, with the reason."""
