"""Logs: what is written to the log, how much of it, and by whom, so that the log never delays the relay.

It is a room because its three parts change for different reasons: the limits, the writing, and the places to write to.
No other room imports it except the top level: the others log with Twisted's `Logger`, and may add to an event

- `limited`, the kind of lines it belongs to, as a noun in the plural (``"session ends"``), or ``""`` for no limit, and
- `reason`, one of a few words, by which lines that are left out are counted.
"""
