"""HTTP: the report, the exposition for Prometheus, health checks and the page.

This room reads statistics and sessions, and never touches the relay's sockets.

Start with `resource`, which has a method for each URL.  `site` limits what HTTP clients can do, `exposition` writes the
text for Prometheus, `overview` lists sessions and clients, and `page` prepares the files in `static/`.
"""
