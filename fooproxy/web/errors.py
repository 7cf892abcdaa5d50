"""Answers to requests that are wrong or fail: in JSON, without repeating anything from the request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.logger import Logger
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from fooproxy.web.answers import as_json
from fooproxy.web.query import BadQuery

if TYPE_CHECKING:
    from klein import Klein
    from twisted.python.failure import Failure
    from twisted.web.iweb import IRequest

_log = Logger()


class Refused(Exception):
    """A request cannot be fulfilled; `status` is the status of the answer, and the message says why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def answer_errors(app: Klein) -> None:
    """Make the routes of `app` answer errors."""
    app.handle_errors(BadQuery)(_misasked)
    app.handle_errors(Refused)(_refused)
    app.handle_errors(HTTPException)(_no_route)
    app.handle_errors(Exception)(_failed)


def _misasked(self: Any, request: IRequest, failure: Failure) -> bytes:
    """Answer 400 for a wrong parameter, and say what would be right."""
    return as_json(request, 400, {"error": str(failure.value)})


def _refused(self: Any, request: IRequest, failure: Failure) -> bytes:
    """Answer with the status and the message of `Refused`."""
    refused: Any = failure.value
    return as_json(request, refused.status, {"error": str(refused)})


def _no_route(self: Any, request: IRequest, failure: Failure) -> bytes:
    """Answer 405 for a wrong method, and 404 for anything else without a route, such as an untidy path."""
    if isinstance(failure.value, MethodNotAllowed):
        request.setHeader("Allow", ", ".join(sorted(failure.value.valid_methods or ())))
        return as_json(request, 405, {"error": "method not allowed"})
    return as_json(request, 404, {"error": "not found"})


def _failed(self: Any, request: IRequest, failure: Failure) -> bytes:
    """Answer 500 for a bug of ours; the details go to the log, not to the client."""
    _log.failure("could not answer an HTTP request; this is a bug in fooproxy", failure, limited="failed HTTP requests")
    return as_json(request, 500, {"error": "internal server error"})
