"""Relaying: sessions, each of two legs, from the accepted client to the last byte.

It knows nothing of messages, counting, HTTP or files: an `Observer` answers for the traffic, and how the upstream is
connected is handed in.

Start with `session`, whose first lines are the rules of a session's life.  `bridge` makes sessions, `leg` is the
protocol of each connection, `interceptor` shows chunks to an analyzer, `sweep` finds idle sessions and peers that do
not read, and `admission` decides which clients get in.
"""
