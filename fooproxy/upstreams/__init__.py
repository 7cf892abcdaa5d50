"""The upstreams: how the proxy connects to the Foo servers behind it, and what it knows about their health.

It knows nothing about messages, sessions or HTTP.

Start with `servers`: the set of servers, one or several; `server` is one of them, and `balance` chooses.
"""
