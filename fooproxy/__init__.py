"""fooproxy: a proxy for the Foo protocol that counts what passes and reports it to its operators.

Start with `service`, which puts all parts together, and logs the end of each session.  `health` decides whether the
proxy is ready, `options` and `values` read the command line, `launch` deals with twistd, and `process` with the process
itself.  Each folder is a room for one part: `web`, `recovery`, `upstreams`, `relay`, `stats`, `foo` and `net`.
"""

__version__ = "0.1.0"
