"""HTTP: the report, the exposition for Prometheus, health checks and the page.

It reads statistics and sessions, and never the relay's sockets.

Start with `resource`, which has a method for each URL.  `site` limits what HTTP clients can do, `exposition` writes
what Prometheus reads, `overview` lists sessions and clients, and `page` serves what is in `static/`.
"""
