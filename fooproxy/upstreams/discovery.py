"""Discovery: finds servers by name, and follows changes in DNS.

A *host* stands for all its addresses, a *service* for the targets of its SRV records, with their priorities and
weights.  A name is looked up again when the answer's TTL expires, but after `_SHORTEST` at the earliest and `_LONGEST`
at the latest.  An answer without a server (empty, wrong, missing) changes nothing: the known servers are kept, and the
next look-up follows soon.  A server that a good answer no longer lists gets no new sessions, unless no other server can
take them; it is forgotten once it has no sessions and a listed server works.  So no answer ever removes the last
working server.

The owner creates and forgets servers; nothing here knows how they are connected or counted.  `fooproxy.parts` creates
the `Discovery`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from typing import Protocol as Interface

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import DNSLookupError
from twisted.logger import Logger
from twisted.names import dns

from fooproxy.net.dns import LookupFailed, address_of, target_of
from fooproxy.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    from fooproxy.net.dns import Answer
    from fooproxy.upstreams.forward import Forward, Source
    from fooproxy.upstreams.server import Server
    from fooproxy.upstreams.servers import Servers

    class NameServers(Interface):
        """The part that queries name servers."""

        async def look_up(self, name: str, kind: int) -> Answer:
            """Return the records of type `kind` for a name; raise `LookupFailed` if there is no answer."""

    class Owner(Interface):
        """The part that creates and forgets servers."""

        def join(self, forward: Forward) -> Server | None:
            """Create a server and use it; return `None` if there is no room for one more."""

        def leave(self, server: Server) -> None:
            """Forget a server that has no sessions."""


_SHORTEST = 1.0
"""Seconds after which a name is looked up again at the earliest, however short its TTL is."""

_LONGEST = 300.0
"""Seconds after which a name is looked up again at the latest, however long its TTL is."""

_LONGEST_PAUSE = 30.0
"""Maximum seconds between two failing look-ups; each pause is twice as long as the one before."""

_LONGEST_WAIT = 5.0
"""Maximum seconds between two failing look-ups while no server is known."""

_LOOK = 1.0
"""Seconds between two checks whether a server that is gone can be forgotten."""

_PROBE = 1.0
"""Seconds that a listed server has to accept a trial connection while another one is gone."""


@dataclass(frozen=True)
class Member:
    """A server that an answer lists: how to forward to it, its priority, and, for a service, its target."""

    forward: Forward
    priority: int = 0
    target: str = ""

    @property
    def is_ipv6(self) -> bool:
        """Whether it has an IPv6 address."""
        return self.forward.address.startswith("[")


class Discovery:
    """Looks up the names in `forwards` with `names`, and makes `owner` add and remove `servers` accordingly."""

    def __init__(
        self, forwards: Sequence[Forward], names: NameServers, servers: Servers, owner: Owner, clock: IReactorTime
    ) -> None:
        self.sources = [Found(forward, names, self, clock) for forward in forwards]
        self.servers = servers
        self.owner = owner
        self._clock = clock
        self._looking: IDelayedCall | None = None

    def start(self) -> None:
        """Look all names up, and repeat each look-up when it is due."""
        for source in self.sources:
            source.look_up()

    def stop(self) -> None:
        """Stop looking names up."""
        for source in self.sources:
            source.stop()
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def report(self) -> list[dict[str, Any]]:
        """Return the servers and the last error of each name, for ``/upstreams``."""
        return [source.report() for source in self.sources]

    @property
    def failing(self) -> int:
        """How many names failed at their last look-up."""
        return sum(source.error is not None for source in self.sources)

    def changed(self) -> None:
        """Update the set of servers after some have joined, are gone or could not be looked up."""
        failed = [source.error for source in self.sources if source.error is not None]
        self.servers.absence = DNSLookupError(failed[0]) if failed else None
        self.servers.sort()
        if self._looking is None and any(source.gone for source in self.sources):
            self._looking = self._clock.callLater(_LOOK, self._look)

    def _look(self) -> None:
        """Forget the servers that are gone and no longer needed."""
        self._looking = None
        for source in self.sources:
            if source.gone and not source.is_proven:
                source.prove()
            for server in source.gone if source.is_proven else ():
                if server.is_idle:
                    source.forget(server)
        self.changed()


class Found:
    """The servers that are found under the name in one ``--forward``."""

    log = Logger()

    def __init__(self, forward: Forward, names: NameServers, owner: Discovery, clock: IReactorTime) -> None:
        source = forward.source
        assert source is not None
        self.forward = forward
        self._source: Source = source
        self._names = names
        self._owner = owner
        self._clock = clock
        self._servers: dict[str, tuple[Member, Server]] = {}
        """The servers in use, and those that are gone but not forgotten, by their names."""
        self._timer: IDelayedCall | None = None
        self._asking: Deferred[None] | None = None
        self.error: str | None = None
        """Why the last look-up failed."""
        self._found_at: float | None = None
        self._failed_at = 0.0
        self._pause = _SHORTEST
        self._left_out = 0

    @property
    def present(self) -> list[Server]:
        """The servers that the last good answer lists."""
        return [server for _, server in self._servers.values() if not server.gone]

    @property
    def gone(self) -> list[Server]:
        """The servers that the last good answer does not list, and that are not forgotten yet."""
        return [server for _, server in self._servers.values() if server.gone]

    @property
    def is_proven(self) -> bool:
        """Whether any of the servers that the last good answer lists works."""
        return any(server.is_proven for server in self.present)

    def prove(self) -> None:
        """Try the listed servers that are not known to fail."""
        for server in self.present:
            if not server.failing:
                Deferred.fromCoroutine(server.probe(_PROBE))

    def report(self) -> dict[str, Any]:
        """Return the servers of the name, when they were found, and the last error, for ``/upstreams``."""
        now = self._clock.seconds()
        return {
            "name": self.forward.name,
            "servers": [server.name for server in self.present],
            "found_seconds_ago": None if self._found_at is None else now - self._found_at,
            "failing_seconds": None if self.error is None else now - self._failed_at,
            "error": self.error,
            "left_out": self._left_out,
        }

    def stop(self) -> None:
        """Stop looking the name up."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()

    def forget(self, server: Server) -> None:
        """Forget a server that is gone."""
        del self._servers[server.name]
        self._owner.owner.leave(server)

    def look_up(self) -> None:
        """Look the name up, and again when it is due."""
        self._timer = None
        asking = self._asking = Deferred.fromCoroutine(self._ask())
        asking.addErrback(self._went_wrong)

    def _went_wrong(self, failure: Any) -> None:
        if self._asking is not None:
            self.log.failure("a look-up failed; this is a bug in fooproxy", failure, limited="failed look-ups")
            self._again(_LONGEST_PAUSE)

    def _again(self, seconds: float) -> None:
        self._asking = None
        self._timer = self._clock.callLater(seconds, self.look_up)

    async def _ask(self) -> None:
        try:
            members, ttl = await (self._service() if self._source.port is None else self._host())
        except LookupFailed as error:
            self._failed(str(error))
            return
        self._take(members)
        self._again(min(max(ttl, _SHORTEST), _LONGEST))

    async def _host(self) -> tuple[list[Member], float]:
        """Return the servers at the addresses of the host, and the TTL of that answer in seconds."""
        addresses, missing, ttl = await self._addresses(self._source.name)
        members = [self._member(address, self._source.port or 0) for address in addresses]
        return [*members, *self._known(lambda member: member.is_ipv6 in missing)], ttl

    async def _service(self) -> tuple[list[Member], float]:
        """Return the servers at the targets of the service, and the TTL of that answer in seconds."""
        answer = await self._names.look_up(self._source.name, dns.SRV)
        records = [record for record in answer.records if target_of(record) and record.port]
        if not records:
            raise LookupFailed("the answer names no server")
        members: list[Member] = []
        ttl, why = answer.ttl, ""
        lowest = min(record.priority for record in records)
        for record in records:
            target = target_of(record)
            try:
                # A target is a complete name.
                addresses, _, seconds = await self._addresses(f"{target}.")
            except LookupFailed as error:
                why = f"{target}: {error}"
                members += self._known(lambda member, target=target: member.target == target)  # type: ignore[misc]
                continue
            ttl = min(ttl, seconds)
            priority = record.priority if record.priority > lowest else 0
            how = target, record.weight or 1, priority, record.priority > lowest
            members += [self._member(address, record.port, *how) for address in addresses]
        if not members:
            raise LookupFailed(why)
        return members, min(ttl, _LONGEST_PAUSE) if why else ttl

    def _known(self, which: Callable[[Member], bool]) -> list[Member]:
        """Return the members in use for which `which` is true: DNS could not tell whether they are still valid."""
        return [member for member, server in self._servers.values() if not server.gone and which(member)]

    def _member(
        self, address: str, port: int, target: str = "", weight: int = 1, priority: int = 0, is_backup: bool = False
    ) -> Member:
        """Return a server; its name is never that of another address."""
        forward = self.forward
        place = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        called = forward.label or target
        label = f"{called}@{place}" if called else place
        backup = forward.backup or is_backup
        made = replace(forward, address=place, label=label, weight=forward.weight * weight, backup=backup)
        return Member(made, priority, target)

    async def _addresses(self, name: str) -> tuple[list[str], list[bool], float]:
        """Return the addresses of a host, the families whose look-up failed (true: IPv6), and the TTL in seconds."""
        asked = [Deferred.fromCoroutine(self._records(name, kind)) for kind in (dns.A, dns.AAAA)]
        answers = await gatherResults(asked, consumeErrors=True)
        good = [answer for answer in answers if not isinstance(answer, LookupFailed)]
        errors = [answer for answer in answers if isinstance(answer, LookupFailed)]
        addresses = [address_of(record) for answer in good for record in answer.records]
        if not addresses:
            raise errors[0] if errors else LookupFailed("the answer names no address")
        ttl = min(answer.ttl for answer in good if answer.records)
        missing = [is_ipv6 for is_ipv6, answer in enumerate(answers) if isinstance(answer, LookupFailed)]
        return addresses, list(map(bool, missing)), ttl

    async def _records(self, name: str, kind: int) -> Answer | LookupFailed:
        try:
            return await self._names.look_up(name, kind)
        except LookupFailed as error:
            return error

    def _take(self, members: Sequence[Member]) -> None:
        """Use the servers that a good answer lists."""
        before = sorted(server.name for server in self.present)
        named = {member.forward.name: member for member in members}
        for name, (_, here) in self._servers.items():
            here.is_back(name in named)
        left_out = 0
        # In the same order each time, so that the same servers are left out.
        for name, member in sorted(named.items()):
            known = self._servers.get(name)
            server = known[1] if known else self._owner.owner.join(member.forward)
            if server is None:
                left_out += 1
                continue
            server.weight, server.backup = member.forward.weight, member.forward.backup
            server.priority = member.priority
            self._servers[name] = member, server
        self._say(before, left_out)
        self._owner.changed()

    def _say(self, before: Sequence[str], left_out: int) -> None:
        self._found_at, self._pause = self._clock.seconds(), _SHORTEST
        if self.error is not None:
            self.error = None
            self.log.info("looked up {name} again", name=self.forward.name)
        names = sorted(server.name for server in self.present)
        if names != before:
            words = "servers" if len(names) > 1 else "server"
            self.log.info(
                f"{{name}} has {{count}} {words} now: {{servers}}",
                name=self.forward.name,
                count=len(names),
                servers=", ".join(names),
            )
        if left_out and not self._left_out:
            self.log.warn(
                "{name} has {count} more servers than the proxy can use; they are left out",
                name=self.forward.name,
                count=left_out,
            )
        self._left_out = left_out

    def _failed(self, why: str) -> None:
        """Keep the servers found before, and ask again soon."""
        now = self._clock.seconds()
        why = one_line(why)
        if self.error is None:
            self._failed_at = now
            line = "cannot look up {name}: {error}; "
            if self._found_at is None:
                line += "no server is known yet, and clients wait"
            else:
                line += "keeping the {count} found {age_seconds:.0f} s ago"
            age = 0.0 if self._found_at is None else now - self._found_at
            self.log.warn(line, name=self.forward.name, error=why, count=len(self.present), age_seconds=age)
        self.error = why
        self._owner.changed()
        self._again(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE if self.present else _LONGEST_WAIT)
