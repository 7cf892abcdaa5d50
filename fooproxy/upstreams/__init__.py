"""The servers behind the proxy: how each of them is connected, and what is known of its health.

It knows no messages, no sessions and no HTTP.

Start with `upstream`: one server, with its retries.
"""
