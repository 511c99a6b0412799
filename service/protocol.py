"""What is answered to bytes that are no HTTP, before there is a request: a problem like any other."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import MEDIA_TYPE, MalformedRequest
from service.headers import DEFAULTS
from service.identity import REQUEST_ID_HEADER, new_request_id


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with that one answer replaced."""

    def send_400_response(self, msg: str) -> None:
        """Answer and close: after bytes that are no HTTP, nothing that follows can be understood."""
        request_id = new_request_id()
        body = MalformedRequest(msg).document(request_id)
        head = (
            "HTTP/1.1 400 Bad Request\r\n"
            f"Content-Type: {MEDIA_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\n"
            f"{REQUEST_ID_HEADER}: {request_id}\r\n"
            + "".join(f"{name}: {value}\r\n" for name, value in DEFAULTS.items())
            + "Connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
