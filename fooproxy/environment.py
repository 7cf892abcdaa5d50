"""Notes about things in the environment that seem to be meant for the proxy, but are not used.

They are notes, not errors, since other programs may set any variable.  This module knows the names of variables, but
not what their values mean; `fooproxy.commandline` calls it, ``--check-config`` prints the notes, and the service logs
them.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from fooproxy.text import one_line

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

_PREFIX = "FOOPROXY_"

_LIKENESS = 0.8
"""The similarity, from 0 to 1, above which a name counts as a misspelling of another."""

_OF_KUBERNETES = re.compile(r"(.*_)?(SERVICE_(HOST|PORT(_.+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)?)")
"""Variables that Kubernetes sets for Services whose names begin with ours."""


class Note(NamedTuple):
    """A note: a template, and the values for it."""

    template: str
    fields: Mapping[str, Any]

    def __str__(self) -> str:
        return self.template.format(**self.fields)


def misspelt(environment: Mapping[str, str], variables: Collection[str]) -> Iterator[Note]:
    """Note each variable that is almost one of `variables`."""
    names = {variable.removeprefix(_PREFIX): variable for variable in variables}
    for variable, value in environment.items():
        begin, written = variable[: len(_PREFIX)], variable[len(_PREFIX) :].upper().replace("-", "_")
        if not value or variable in variables or begin.upper().replace("-", "_") != _PREFIX:
            continue
        if not _OF_KUBERNETES.fullmatch(written):
            for near in difflib.get_close_matches(written, names, 1, _LIKENESS):
                yield Note(
                    "the environment variable {variable} is not used; did you mean {near}?",
                    {"variable": one_line(variable), "near": names[near]},
                )


def left_over(passed: int, used: int) -> Iterator[Note]:
    """Note that systemd, or a program with the same protocol, has passed more sockets than are used."""
    if passed > used:
        yield Note(
            "{used} of {passed} sockets that were passed to this process (LISTEN_FDS) are used; "
            "to take the first one, set --listen systemd:domain=INET:index=0",
            {"passed": passed, "used": used},
        )
