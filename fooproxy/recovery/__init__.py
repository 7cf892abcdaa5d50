"""Statistics that survive a crash: what is saved, the file it is saved in, and when.

It knows no HTTP and no sockets.

Start with `state` (what is saved, and what is checked before it comes back), then `saver` (a file that is replaced as
a whole, and its lock) and `saving` (once a second, in a thread of its own).
"""
