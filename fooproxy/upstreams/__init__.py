"""The upstreams: how the proxy connects to the Foo servers behind it, and what it knows about their health.

It knows nothing about messages, sessions or HTTP.

Start with `upstream`: one server, with retries.
"""
