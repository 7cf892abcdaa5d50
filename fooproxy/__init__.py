"""fooproxy: a proxy for the Foo protocol that counts what passes and reports it to its operators.

Start with `parts`, which makes all parts and connects them, and with `service`, which starts and stops them.  `health`
decides whether the proxy is ready, `options` declares the options and `commandline` reads them, `launch` deals with
twistd, and `process` with the process itself.  Each folder is a room for one part: `web`, `recovery`, `upstreams`,
`relay`, `stats`, `foo` and `net`.
"""

__version__ = "0.1.0"
