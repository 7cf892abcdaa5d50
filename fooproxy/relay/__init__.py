"""The relay: sessions of two legs each, from accepting the client to delivering the last byte.

It knows nothing about messages, counting, HTTP or files.  Whatever depends on the content of the traffic is answered
by an `Observer`, and the function that connects to the upstream is passed in.

Start with `session`: its docstring states the rules of a session's life.  `bridge` creates sessions, `leg` is the
protocol of each connection, `interceptor` shows chunks to an analyzer, `sweep` finds idle sessions and stalled peers,
`timeouts` holds the time limits, and `admission` decides which clients get in.
"""
