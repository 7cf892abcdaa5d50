"""The proxies that are compared: how each is started, or why it cannot be.

Each runs as one process that relays to one upstream on 127.0.0.1 and does not log connections.  This module does not
know what is measured.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HERE = Path(__file__).parent
CHECKOUT = HERE.parent
NGINX_MODULES = Path("/usr/lib/nginx/modules")


class Stage(NamedTuple):
    """The parameters of a proxy: a `directory` of its own, ports of 127.0.0.1, the limit of open `files`."""

    directory: Path
    upstream: int
    listen: int
    files: int


class Peer(NamedTuple):
    """One proxy; without a `command`, clients connect to the server directly.

    `missing` says why it cannot run.  A proxy that chooses its ports itself, instead of using `Stage.listen`, logs
    them; `says_ports` matches the ports for ``clients`` and for ``http``, which serves its counts.
    """

    name: str
    command: Callable[[Stage], list[str]] | None
    missing: str | None = None
    says_ports: re.Pattern[str] | None = None


def find_peers(python: str, reactors: Sequence[str], mitmdump: str) -> list[Peer]:
    """List all peers: fooproxy under `python`, with the default reactor and each of `reactors`, and the others."""
    return [
        Peer("direct", None),
        *(_fooproxy(python, reactor) for reactor in ("", *reactors)),
        _fooproxy(python, pure=True),
        *(_fooproxy(python, pool=pool) for pool in ("session", "burst")),
        Peer("haproxy", _haproxy, _no_program("haproxy")),
        Peer("nginx", _nginx, _no_nginx("ngx_stream_module.so")),
        Peer("nginx-njs", _nginx_njs, _no_nginx("ngx_stream_module.so", "ngx_stream_js_module.so")),
        Peer("portforward", lambda stage: [python, "-c", _PORTFORWARD, str(stage.listen), str(stage.upstream)]),
        Peer("mitmproxy", lambda stage: _mitmproxy(mitmdump, stage), _no_program(mitmdump)),
    ]


def _program(name: str) -> str | None:
    # Few users have the directories of system programs on their path, but these programs do not need root.
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin")


def _no_program(name: str) -> str | None:
    return None if _program(name) else f"there is no program {name}"


def _no_nginx(*modules: str) -> str | None:
    absent = [module for module in modules if not (NGINX_MODULES / module).exists()]
    return _no_program("nginx") or (f"nginx has no {absent[0]} in {NGINX_MODULES}" if absent else None)


def _fooproxy(python: str, reactor: str = "", pure: bool = False, pool: str = "off") -> Peer:
    # Beside the unresolved path of the interpreter: in a virtual environment, it is a link to another directory.
    twistd = Path(python).parent / "twistd"

    def command(stage: Stage) -> list[str]:
        return [
            *("env", f"FOOPROXY_PURE={pure:d}", python, str(twistd), "-n", "--pidfile="),
            *(["--reactor", reactor] if reactor else []),
            *("fooproxy", "--forward", f"127.0.0.1:{stage.upstream}"),
            *("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--pool", pool),
            *("--recovery-path", str(stage.directory / "recovery.json")),
        ]

    return Peer(
        "-".join(filter(None, ("fooproxy", reactor, "pure" if pure else "", "" if pool == "off" else pool))),
        command,
        None if twistd.exists() else f"there is no {twistd}",
        re.compile(r"clients on 127\.0\.0\.1:(?P<clients>\d+)(?s:.*)HTTP on http://127\.0\.0\.1:(?P<http>\d+)"),
    )


_HAPROXY = """\
global
    nbthread 1
    maxconn {sessions}
defaults
    mode tcp
    maxconn {sessions}
    timeout connect 10s
    timeout client 1h
    timeout server 1h
listen foo
    bind 127.0.0.1:{listen} backlog 4096
    server foo 127.0.0.1:{upstream}
"""


def _haproxy(stage: Stage) -> list[str]:
    sessions = min(25_000, stage.files // 2 - 100)
    config = stage.directory / "haproxy.cfg"
    config.write_text(_HAPROXY.format(sessions=sessions, listen=stage.listen, upstream=stage.upstream))
    return [_program("haproxy") or "haproxy", "-db", "-f", str(config)]


_NGINX = """\
{modules}
daemon off;
master_process off;
worker_processes 1;
pid nginx.pid;
error_log error.log error;
events {{ worker_connections {connections}; }}
stream {{
    {script}
    server {{
        listen 127.0.0.1:{listen} backlog=4096;
        proxy_pass 127.0.0.1:{upstream};
        proxy_timeout 1h;
        {filter}
    }}
}}
"""


def _nginx(stage: Stage, *modules: str, script: str = "", filter: str = "") -> list[str]:
    config = _NGINX.format(
        modules="".join(f"load_module {NGINX_MODULES / name};" for name in ("ngx_stream_module.so", *modules)),
        connections=min(50_000, stage.files - 100),
        script=script,
        filter=filter,
        listen=stage.listen,
        upstream=stage.upstream,
    )
    (stage.directory / "nginx.conf").write_text(config)
    return [_program("nginx") or "nginx", "-p", f"{stage.directory}/", "-c", "nginx.conf", "-e", "error.log"]


def _nginx_njs(stage: Stage) -> list[str]:
    script = f"js_import count from {HERE / 'njs_count.js'};"
    return _nginx(stage, "ngx_stream_js_module.so", script=script, filter="js_filter count.count;")


# The code that `twistd portforward` runs, without its log lines for each connection.
_PORTFORWARD = """\
import sys
from twisted.internet import reactor
from twisted.protocols.portforward import ProxyClientFactory, ProxyFactory
ProxyFactory.noisy = ProxyClientFactory.noisy = False
listen, upstream = map(int, sys.argv[1:])
reactor.listenTCP(listen, ProxyFactory("127.0.0.1", upstream), backlog=4096, interface="127.0.0.1")
reactor.run()
"""


def _mitmproxy(mitmdump: str, stage: Stage) -> list[str]:
    settings = {
        "mode": f"reverse:tcp://127.0.0.1:{stage.upstream}",
        "listen_host": "127.0.0.1",
        "listen_port": stage.listen,
        "confdir": stage.directory,
        "flow_detail": 0,
        "termlog_verbosity": "error",
    }
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return [mitmdump, "-q", "-s", str(HERE / "mitmproxy_count.py"), *options]
