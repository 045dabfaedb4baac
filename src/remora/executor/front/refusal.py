"""A refusal: a decision not to do what was asked, with the HTTP status that fits its kind."""

from __future__ import annotations

STATUS_OF_KIND = {
    "auth": 401,
    "version": 426,
    "session": 404,
    "limit": 429,
    "memory": 507,
    "protocol": 400,
    "blob": 403,
    "busy": 503,
    "bug": 500,
}


class Refuse(Exception):
    """Raised by any part of the front; becomes the JSON `Refusal` of the answer."""

    def __init__(self, kind: str, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.status = STATUS_OF_KIND[kind] if status is None else status
