"""The command ``fooproxy``, also ``python -m fooproxy``.

This module only makes the process remember signals from the first moment on: loading the rest takes half a second, and
in a container process 1 never gets a signal that it does not handle.
"""

import sys

from fooproxy.early import hold, loading


def main() -> None:
    """Run the proxy in the foreground, with the options on the command line."""
    hold()
    with loading():
        from fooproxy.command import run
    run(sys.argv[1:])


if __name__ == "__main__":
    main()
