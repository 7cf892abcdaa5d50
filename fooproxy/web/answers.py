"""Answers to HTTP requests: their security headers and their compression.

This module does not know the content; the routes of `fooproxy.web.resource` do.
"""

from __future__ import annotations

import gzip
import json
from http import HTTPStatus
from typing import Any

from werkzeug.http import parse_accept_header

_LONGEST_LIST = 2048
"""Maximum characters to parse of a header with alternatives, several times what Prometheus and browsers send."""

_COMPRESSED = 1000
"""Bytes; an answer of at least this size is compressed if the client accepts gzip."""

_SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
    "Server": "fooproxy",
}


def as_json(request: Any, status: int, content: object) -> bytes:
    """Answer with `content` as JSON."""
    return answer(request, status, "application/json", json.dumps(content).encode() + b"\n")


def answer(request: Any, status: int, content_type: str, body: bytes) -> bytes:
    """Set the status and the headers, and return the body, compressed if that pays and the client takes it."""
    # Twisted has no phrase for some status codes.
    request.setResponseCode(status, HTTPStatus(status).phrase.encode())
    for name, value in _SECURITY.items():
        request.setHeader(name, value)
    request.setHeader("Content-Type", content_type)
    request.setHeader("Vary", "Accept, Accept-Encoding")
    if len(body) >= _COMPRESSED and _takes_gzip(request):
        request.setHeader("Content-Encoding", "gzip")
        body = gzip.compress(body, 1)
    request.setHeader("Content-Length", str(len(body)))
    return body


def _takes_gzip(request: Any) -> bool:
    return parse_accept_header(header(request, b"accept-encoding")).quality("gzip") > 0


def header(request: Any, name: bytes) -> str:
    """Return the value of a header, cut at the limit, since parsing a long one takes milliseconds."""
    return b",".join(request.requestHeaders.getRawHeaders(name, [])).decode("latin-1")[:_LONGEST_LIST]
