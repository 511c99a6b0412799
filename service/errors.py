"""Every problem a client can meet: one class each, which owns its status. Answered as RFC 9457 problem+json.

The first line of a docstring is the problem's title; all of it is served at the problem's `type`, /problems/{code}.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Iterable, Mapping
from typing import ClassVar

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """Anything that is answered with another status than 2xx.

    Args:
        detail: what was wrong with this request, and what to do about it.
        headers: to send with the answer.
        members: further members of the answer.
    """

    status: ClassVar[int]
    code: ClassVar[str]
    rejects: ClassVar[bool] = False  # a limit said no: counted in tcm_requests_rejected_total
    retry_after: ClassVar[int | None] = None  # seconds, where nothing better is known

    def __init__(self, detail: str, *, headers: Mapping[str, str] | None = None, **members: object) -> None:
        super().__init__(detail)
        self.detail, self.headers, self.members = detail, dict(headers or {}), members
        if self.retry_after is not None:
            self.headers.setdefault("Retry-After", str(self.retry_after))

    @classmethod
    @functools.cache
    def title(cls) -> str:
        """One line, the same for every occurrence."""
        return cls.documentation().splitlines()[0].rstrip(".")

    @classmethod
    @functools.cache
    def documentation(cls) -> str:
        """What it means and what to do about it."""
        return inspect.getdoc(cls) or cls.code

    def document(self, request_id: str) -> bytes:
        """The problem+json itself."""
        members: dict[str, object] = {
            "type": f"/problems/{self.code}",
            "title": self.title(),
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
        }
        return json.dumps(members | self.members).encode()


class MalformedRequest(Problem):
    """The request is not well formed.

    A header contradicts itself, or the bytes are no HTTP at all.
    """

    status, code = 400, "malformed-request"


class EmptyBody(Problem):
    """The request has no body.

    Send the file as the raw body (`curl --data-binary @photo.png`) or as the multipart field `file`.
    """

    status, code = 400, "empty-body"


class BadForm(Problem):
    """The multipart form is not one file in the field `file`.

    Several files, another field, or a field without a file name. Parameters go into the query string.
    """

    status, code = 400, "bad-form"


class AmbiguousModel(Problem):
    """Both `model` and `quality` were given.

    Each of them chooses the model: send one.
    """

    status, code = 400, "ambiguous-model"


class KeyRequired(Problem):
    """This call needs an API key.

    Send it as `Authorization: Bearer …` or `X-API-Key: …`. Whoever operates the server makes keys with `tcm keys new`.
    """

    status, code = 401, "key-required"


class InvalidKey(Problem):
    """The API key is not valid.

    It is unknown, revoked or expired.
    """

    status, code = 401, "invalid-key"


class InsufficientScope(Problem):
    """The API key is not good for this call.

    The detail names the scope that it lacks.
    """

    status, code = 403, "insufficient-scope"


class CrossOriginRefused(Problem):
    """Pages of this origin may not make this request.

    Origins are allowed by the setting TCM_CORS_ORIGINS; programs other than browsers need none of it.
    """

    status, code = 403, "cross-origin-refused"


class InvalidSignature(Problem):
    """The URL is not signed, or not by an active key.

    The signature belongs to one path, one end and one key: a URL that was changed in any of them is none. Whoever
    operates the server signs URLs with `tcm store sign`.
    """

    status, code = 403, "invalid-signature"


class NotFound(Problem):
    """There is nothing at this address."""

    status, code = 404, "not-found"


class BitstreamNotFound(Problem):
    """No bitstream of this id is stored.

    It was never stored, was deleted, or its time to live is over. The id is the SHA-256 of its bytes.
    """

    status, code = 404, "bitstream-not-found"


class StoreDisabled(Problem):
    """This server keeps no bitstreams.

    Its setting TCM_STORE is `none`. /v1/encode and /v1/decode work without a store.
    """

    status, code = 404, "store-disabled"


class UnknownModel(Problem):
    """No model of this name is installed.

    GET /v1/models lists those that are.
    """

    status, code = 404, "unknown-model"


class MethodNotAllowed(Problem):
    """This address does not take this method.

    The header `Allow` names those that it takes.
    """

    status, code = 405, "method-not-allowed"


class NotAcceptable(Problem):
    """No image format that `Accept` allows can be had.

    The member `available` lists the media types that can. WebP, JPEG and AVIF bound the sides of an image.
    """

    status, code = 406, "not-acceptable"


class RequestTimeout(Problem):
    """The request did not arrive in time.

    Its headers took too long, or its body came so slowly that others were given its place. The connection is closed.
    """

    status, code = 408, "request-timeout"


class IncompatibleModel(Problem):
    """The bitstream needs weights that this server has not got.

    The detail names the model and the fingerprint of its weights. Install them, or decode where it was encoded. The
    same is said where the weights are here, but this machine cannot reproduce the symbols that were written.
    """

    status, code = 409, "incompatible-model"


class UrlExpired(Problem):
    """The time of this signed URL is over.

    Ask for a new one.
    """

    status, code = 410, "url-expired"


class BodyTooLarge(Problem):
    """The request body is larger than this server takes.

    The limit is the setting TCM_MAX_BODY_BYTES. It is counted before anything is parsed.
    """

    status, code, rejects = 413, "body-too-large", True


class UnsupportedMediaType(Problem):
    """The content type of the request is none that this address takes.

    An image is sent as `image/*`, a bitstream as `application/vnd.tcm`, either as `application/octet-stream` or
    `multipart/form-data`; without a Content-Encoding.
    """

    status, code = 415, "unsupported-media-type"


class UnsupportedImage(Problem):
    """These bytes are no image of a kind that can be coded.

    The member `detail` says what they are, where that can be told, and what to do.
    """

    status, code = 415, "unsupported-image"


class UnsupportedBitstream(Problem):
    """These bytes are no .tcm file, or one of a later version."""

    status, code = 415, "unsupported-bitstream"


class PreconditionFailed(Problem):
    """What is there is not what `If-Match` names.

    Nothing was done. The entity tag of a bitstream is its id, in quotes; a picture's comes with it.
    """

    status, code = 412, "precondition-failed"


class RangeNotSatisfiable(Problem):
    """The range that was asked for begins behind the end.

    The header `Content-Range` says how many bytes there are.
    """

    status, code = 416, "range-not-satisfiable"


class InvalidParameter(Problem):
    """A parameter has a value outside its range.

    The member `errors` names each and says why.
    """

    status, code = 422, "invalid-parameter"

    @classmethod
    def of(cls, wrong: Iterable[tuple[str, str]], hint: str = "") -> InvalidParameter:
        """Of parameters and what is wrong with each."""
        wrong = list(wrong)
        detail = "; ".join([*(f"{name}: {reason}" for name, reason in wrong), *filter(None, [hint])])
        return cls(detail, errors=[{"parameter": name, "reason": reason} for name, reason in wrong])


class CorruptImage(Problem):
    """The image file is damaged or truncated."""

    status, code = 422, "corrupt-image"


class CorruptBitstream(Problem):
    """The .tcm file is damaged or truncated."""

    status, code = 422, "corrupt-bitstream"


class TooManyPixels(Problem):
    """The image has more pixels than this server takes.

    The limit is the setting TCM_MAX_PIXELS. It is read from the file's header, before anything is decoded.
    """

    status, code, rejects = 422, "too-many-pixels", True


class HeadersTooLarge(Problem):
    """Request line and headers are larger than this server takes.

    The connection is closed, since what follows is not read.
    """

    status, code = 431, "headers-too-large"


class QuotaExceeded(Problem):
    """The caller has asked for more than its share.

    The share is that of all API keys of its name, or of its network address where there are no keys: the settings
    TCM_QUOTA_PER_MINUTE and TCM_QUOTA_BURST. `Retry-After` says in how many seconds the next request will be taken.
    """

    status, code, rejects = 429, "quota-exceeded", True


class ClientGone(Problem):
    """The client closed the connection before its answer was there.

    Nobody sees this answer; the status (nginx's) is for logs and metrics.
    """

    status, code, rejects = 499, "client-gone", True


class InternalError(Problem):
    """The server made a mistake.

    The operator finds it in the log under the `request_id`.
    """

    status, code = 500, "internal-error"


class DamagedBitstream(Problem):
    """The bytes in the store are not those that were stored.

    They were damaged there, and are never served. Storing the same bitstream anew mends it; the operator finds all
    that are damaged with `tcm store verify`.
    """

    status, code = 502, "damaged-bitstream"


class StoreUnavailable(Problem):
    """The store does not answer, or fails.

    Try again after the time in `Retry-After`. What was answered with 201 is safe; a POST that met this may be repeated,
    since the same bytes are the same bitstream.
    """

    status, code, rejects, retry_after = 503, "store-unavailable", True, 5


class OutOfMemory(Problem):
    """The device has no memory left for this image.

    Try again later, or send a smaller image.
    """

    status, code, rejects, retry_after = 503, "out-of-memory", True, 1


class NoProcess(Problem):
    """The machine gives no process to read the image with, or no thread or file, or has killed that process.

    It is short of memory, or has too many open connections or processes. Try again after the time in `Retry-After`.
    """

    status, code, rejects, retry_after = 503, "no-process", True, 1


class ModelUnavailable(Problem):
    """The model is installed, but could not be loaded.

    The operator finds the reason in the log under the `request_id`. Other models may work.
    """

    status, code, rejects = 503, "model-unavailable", True


class NotReady(Problem):
    """The service is not ready for requests.

    Its models are being loaded or tried, or failed their trial, or it has been told to stop.
    """

    status, code, rejects = 503, "not-ready", True


class Saturated(Problem):
    """The server has as much to do as it takes on.

    The limits are the settings TCM_MAX_QUEUE_ITEMS and TCM_MAX_QUEUE_PIXELS, and TCM_MAX_UNREAD_BYTES for answers that
    clients have not read. `Retry-After` says when to try again: of the queue, as fast as the device has been of late.
    """

    status, code, rejects, retry_after = 503, "saturated", True, 1


class Draining(Problem):
    """The server is being stopped.

    It finishes what it has begun and takes nothing new. Send the request again: another replica answers it.
    """

    status, code, rejects, retry_after = 503, "draining", True, 1


class WorkerLost(Problem):
    """The server's device no longer answers.

    The process ends, and is replaced if it is supervised. Send the request again: another replica answers it.
    """

    status, code, rejects, retry_after = 503, "worker-lost", True, 1


class DeadlineExceeded(Problem):
    """The request took longer than its deadline.

    The deadline is `timeout_ms=` in the query, at most the setting TCM_TIMEOUT_MS, for the whole request.
    """

    status, code, rejects = 504, "deadline-exceeded", True


PROBLEMS: dict[str, type[Problem]] = {cls.code: cls for cls in Problem.__subclasses__()}
