"""Tells twistd that fooproxy exists; everything else is imported when it is used."""

from typing import Any

from twisted.application.service import ServiceMaker


class Maker(ServiceMaker):
    """Remembers signals from when twistd asks for the options, before it loads the rest of fooproxy."""

    @property
    def options(self) -> Any:
        """The class of the options."""
        from fooproxy.early import hold, loading

        hold()
        with loading():
            return super().options


fooproxy = Maker(
    "fooproxy",
    "fooproxy.service",
    "A proxy for the Foo protocol that counts what passes and tells its operators.",
    "fooproxy",
)
