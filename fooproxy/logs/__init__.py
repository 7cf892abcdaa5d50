"""Logs: the limits, the formats and the writing of the log, so that the log never delays the relay.

The parts change for different reasons: the limits, the formats, the writing, and the places to write to.  No other room
imports this one except the top level: the others log with Twisted's `Logger`, and may add to an event

- `limited`, the kind of lines it belongs to, as a noun in the plural (``"session ends"``), or ``""`` for no limit, and
- `reason`, one of a few words, by which lines that are left out are counted.
"""
