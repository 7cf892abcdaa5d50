"""The test driver: a Foo server, a Foo client that checks every reply, and a demo of the proxy between the two.

It reads the Foo protocol by itself (`messages`) rather than through the proxy's analyzer, so that the two cannot share
a mistake, and it knows nothing of the proxy but its command line, its log lines, its report and its HTTP addresses.

For tests in one process: `server.FooServerFactory(clock, …)` listens on any endpoint, and
``await client.Client(reactor, endpoint, client.Load(…)).run()`` gives a `tally.Tally` or raises `client.ClientError`.
"""
