"""Formats figures for people: durations in a sensible unit, rates, and counts with their noun.

All of the driver's output uses these functions, so that figures look the same everywhere.
"""

from __future__ import annotations


def duration_text(seconds: float) -> str:
    """Format a duration in a sensible unit.

    Up to a minute it has three digits (``812 µs``, ``5.63 ms``, ``3.01 s``), then ``2 min 5 s`` and ``1 h 30 min``.
    """
    if not seconds:
        return "0 s"
    # Each bound is where three digits would round up to the next unit.
    if seconds < 999.5e-6:
        return f"{seconds * 1e6:.3g} µs"
    if seconds < 999.5e-3:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    if seconds < 3599.5:
        return "{} min {} s".format(*divmod(round(seconds), 60))
    return "{} h {} min".format(*divmod(round(seconds / 60), 60))


def rate_text(per_second: float) -> str:
    """Format a rate per second: three digits below 100, whole numbers above."""
    return f"{per_second:.3g}" if per_second < 99.95 else f"{per_second:.0f}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """Format a count: ``1 request`` but ``2 requests``; `plural` is for nouns that take more than an "s"."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"
