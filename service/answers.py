"""What a client is told when something raises: the table from exceptions to problems, and the response."""

from __future__ import annotations

import errno

import structlog
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from model import errors as model_errors
from service import errors
from service.identity import Record
from service.methods import allowed

log = structlog.get_logger()

FROM_MODEL: dict[type[Exception], type[errors.Problem]] = {
    model_errors.UnknownModel: errors.UnknownModel,
    model_errors.OutputLimit: errors.NotAcceptable,
    model_errors.IncompatibleModel: errors.IncompatibleModel,
    model_errors.UnsupportedImage: errors.UnsupportedImage,
    model_errors.UnsupportedBitstream: errors.UnsupportedBitstream,
    model_errors.CorruptImage: errors.CorruptImage,
    model_errors.CorruptBitstream: errors.CorruptBitstream,
    model_errors.TooManyPixels: errors.TooManyPixels,
    model_errors.OutOfMemory: errors.OutOfMemory,
    model_errors.NoProcess: errors.NoProcess,
    model_errors.DeviceLost: errors.WorkerLost,
    model_errors.CheckpointMismatch: errors.ModelUnavailable,
    model_errors.CheckpointUnreadable: errors.ModelUnavailable,
}
"""What `model` raises, as what a client is told. An error that is not here is the server's mistake."""

_FROM_FRAMEWORK: dict[int, type[errors.Problem]] = {
    400: errors.MalformedRequest,
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
}

_LIMITS = (errno.EMFILE, errno.ENFILE, errno.EAGAIN)
_NO_THREAD = ("can't start new thread", "Resource temporarily unavailable")  # Python's words, and C++'s
_OF_FILES = (errors.UnsupportedImage, errors.UnsupportedBitstream, errors.CorruptImage, errors.CorruptBitstream)
_OF_CURL = "application/x-www-form-urlencoded"

ANSWERED = (HTTPException, RequestValidationError, errors.Problem, model_errors.ModelError, MemoryError)
"""Exceptions that a handler may end with; any other is unexpected, and answered by `LastResort`."""


def as_problem(error: Exception) -> errors.Problem:
    """The problem that any exception means to a client; one that means none is an `InternalError`."""
    if isinstance(error, errors.Problem):
        return error
    if isinstance(error, RequestValidationError):
        return errors.InvalidParameter.of((str(e["loc"][-1]), str(e["msg"])) for e in error.errors())
    if isinstance(error, HTTPException) and error.status_code in _FROM_FRAMEWORK:
        return _FROM_FRAMEWORK[error.status_code](error.detail, headers=error.headers)
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return errors.OutOfMemory("the server has not enough memory left for this request")
    if type(error) in FROM_MODEL:
        return FROM_MODEL[type(error)](str(error))
    if (isinstance(error, OSError) and error.errno in _LIMITS) or str(error) in _NO_THREAD:
        return errors.NoProcess("the machine gives no more threads or files; try again later")
    return errors.InternalError("something went wrong here; the request_id leads the operator to it")


def _forget_frames(problem: errors.Problem) -> None:
    """Or what it failed on would be kept as long as the record of it. Reasons stay, for who is told of the same."""
    problem.__context__ = None
    seen: set[int] = set()
    found: list[BaseException] = [problem]
    while found:
        error = found.pop().with_traceback(None)
        seen.add(id(error))
        found += [other for other in (error.__cause__, error.__context__) if other and id(other) not in seen]


def answer(scope: Scope, error: Exception) -> Response:
    """The response to an exception. What the client is not told is logged."""
    problem = as_problem(error)
    if isinstance(problem, errors.MethodNotAllowed):
        problem.headers["Allow"] = allowed(scope)
        problem.detail = f"{scope['method'][:20]} is not taken here; what is: {problem.headers['Allow']}"
    elif isinstance(error, HTTPException) and isinstance(problem, errors.NotFound):
        problem.detail = f"there is nothing at {scope['path'][:100]!r}; /docs lists every address"
    elif isinstance(problem, _OF_FILES) and Headers(scope=scope).get("content-type") == _OF_CURL:
        problem.detail += "; if it was sent with curl -d, that took its line ends: use --data-binary"
    record = Record.of(scope)
    record.problem = problem
    if isinstance(problem, errors.InternalError | errors.ModelUnavailable):
        log.error(problem.code, exc_info=error)
    elif isinstance(problem, errors.NoProcess):
        log.warning(problem.code, exc_info=error)
    _forget_frames(problem)
    return Response(
        problem.document(record.request_id),
        status_code=problem.status,
        headers={"Cache-Control": "no-store"} | problem.headers,
        media_type=errors.MEDIA_TYPE,
    )
