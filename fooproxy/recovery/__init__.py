"""Recovery: statistics that survive a crash.

This room does not know about HTTP or sockets.

Start with `state` (what is saved, and what is checked before it is restored), then read `saver` (a file that is
replaced atomically, and its lock) and `saving` (when it is saved: once a second, in a thread of its own).
"""
