"""What clients of HTTP servers share: addresses, secrets, whom to trust, and how long to wait."""

from __future__ import annotations

import re
import ssl

import httpx

from reward_sdk.errors import ConfigError


def is_url(text: str) -> bool:
    """Whether a text is the base address of a server, without a password: addresses are logged.

    >>> is_url("http://node1:8000/v1"), is_url("http://me:secret@node1"), is_url("node1:8000")
    (True, False, False)
    """
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    return (
        url.scheme in ("http", "https")
        and bool(url.host)
        and not (url.userinfo or url.query or url.fragment)
        and (url.port or 80) < 1 << 16
    )


def shown_url(given: object) -> str:
    """An address that is none as part of a message; not shown where it may hold a password."""
    secret = any(mark in str(given) for mark in "@?#")
    return "not shown, for it may hold a password" if secret else repr(given)


def clean_token(text: str, source: str) -> str:
    """A token as a header can carry it; ConfigError, naming its source, if it is none."""
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{source}: a token is one word of printable ASCII characters")
    return token


def certificates() -> ssl.SSLContext:
    """Whom to trust: the usual authorities and the machine's own, $SSL_CERT_FILE among them."""
    context = httpx.create_ssl_context()
    context.load_default_certs()
    return context


def retry_after(response: httpx.Response, longest: float) -> float:
    """Seconds that an answer asks to be waited, at most `longest`; 0, so that one's own pause
    counts, for a date and for nonsense."""
    text = response.headers.get("retry-after", "")
    return min(float(text), longest) if re.fullmatch(r"[0-9]{1,9}", text) else 0.0
