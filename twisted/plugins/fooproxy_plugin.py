"""Tells twistd that fooproxy exists; everything else is imported when it is used."""

import gc
from typing import Any

from twisted.application.service import ServiceMaker


class Maker(ServiceMaker):
    """Remembers signals from when twistd asks for the options, before it loads the rest of fooproxy."""

    @property
    def options(self) -> Any:
        """The class of the options."""
        from fooproxy.early import hold

        hold()
        # All of it stays, and to look for garbage in it would make the start longer by a tenth.
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            return super().options
        finally:
            gc.freeze()
            if was_enabled:
                gc.enable()


fooproxy = Maker(
    "fooproxy",
    "fooproxy.service",
    "A proxy for the Foo protocol that counts what passes and tells its operators.",
    "fooproxy",
)
