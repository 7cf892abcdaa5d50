"""Writes figures for people: durations in a unit that suits them, rates, and counts with their noun.

Every text that the driver shows takes its figures from here, so that they all look alike.
"""

from __future__ import annotations


def duration_text(seconds: float) -> str:
    """Write a duration in the unit that suits it.

    Up to a minute to three digits (``812 µs``, ``5.63 ms``, ``3.01 s``), then ``2 min 5 s`` and ``1 h 30 min``.
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
    """Write a number per second: three digits of a low one, all whole digits of a high one."""
    return f"{per_second:.3g}" if per_second < 99.95 else f"{per_second:.0f}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """Write ``1 request`` but ``2 requests``; `plural` is for nouns that take more than an "s"."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"
