"""The test driver: a Foo server, a Foo client that checks every reply, and a demo with the proxy between them.

It has its own parser for the Foo protocol (`messages`), so that it cannot share a bug with the proxy's analyzer.  Of
the proxy it knows only the command line, the log lines, the report and the HTTP addresses.

For tests in one process: `server.FooServerFactory(clock, …)` listens on any endpoint, and
``await client.Client(reactor, endpoint, client.Script(…)).run()`` returns a `tally.Tally` or raises
`client.ClientError`.
"""
