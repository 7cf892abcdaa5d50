"""TCP as the relay needs it: addresses, endpoints, and transports that write at once and are polled together.

It knows nothing of the Foo protocol, of sessions or of counting; the chunks that it relays are shown to a `pump.Tap`.

Start with `addresses` (from an operator's text to an endpoint), then `transport`, `poller` and `pump` (the way of a
chunk).  `named` and `resolver` look names up, `arrival` waits for TLS, `failures` says why a connection could not be
made, `proxy_header` reads PROXY headers, `sockets` asks the kernel which data waits for a peer, and `deadlines` keeps
many deadlines with one timer.
"""
