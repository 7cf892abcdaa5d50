"""Tells twistd that fooproxy exists; everything else is imported when it is used."""

from twisted.application.service import ServiceMaker

fooproxy = ServiceMaker(
    "fooproxy",
    "fooproxy.service",
    "A proxy for the Foo protocol that counts what passes and tells its operators.",
    "fooproxy",
)
