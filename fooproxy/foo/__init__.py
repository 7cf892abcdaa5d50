"""The Foo protocol, sans-IO: which lines are messages, how many there are, and how long replies take.

This room does not know about Twisted, clocks or sockets: bytes and times come in, numbers come out.

Start with `grammar` (what a message is), then read `analyzer` (chunks to counts) and `latency` (matching replies with
requests).  `numbers` is the flat array that all of them count in.
"""
