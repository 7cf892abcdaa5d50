"""fooproxy: a proxy for the Foo protocol that counts what passes and tells its operators."""

__version__ = "0.1.0"
