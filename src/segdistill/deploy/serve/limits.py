"""What one client may cost the others, and who may ask at all."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass

from ...types import UserError

TOKEN = "SEGDISTILL_TOKEN"  # environment variable
LEAST = 16  # characters of a token: what cannot be guessed by trying


@dataclass(frozen=True)
class Limits:
    """Of a request, and of all requests together. Raises UserError for what leaves no room for any."""

    max_bytes: int = 20_000_000  # of an image file
    max_pixels: int = 25_000_000  # of an image, also when padded; more are not decoded
    max_seconds: float = 30.0  # from the headers of a request to its answer
    max_waiting: int = 16  # uploads beside the one that is computed; more are refused with 503

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if min(self.max_bytes, self.max_pixels) < 1 or not self.max_seconds > 0 or self.max_waiting < 0:
            raise UserError("--max-bytes, --max-pixels and --max-seconds must be above 0, --max-waiting not below")


def token_for(host: str, token: str | None) -> str | None:
    """The token that clients must show; None: anybody on this machine may ask.

    Raises:
        UserError: a host that others reach without a token, or a token that could be guessed.
    """
    token = token if token is not None else os.environ.get(TOKEN)
    if token is None and not is_loopback(host):
        raise UserError(f"{host} is reached from other machines: give --token (or set {TOKEN}), or serve on 127.0.0.1")
    if token is not None and (len(token) < LEAST or not token.isascii() or not token.isprintable() or " " in token):
        raise UserError(
            f"the token must have at least {LEAST} ASCII characters and no space; make one with: "
            'python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address; of names `localhost` alone is one."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
