"""What keeps a server on a shared cluster from being misused: tokens, addresses, sites, paths,
images."""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from reward_sdk.errors import ConfigError, ScoringError
from reward_sdk.http import clean_token
from reward_sdk.images import RefusedError, check_pixels
from reward_sdk.types import ImageRef
from reward_sdk.wire import MAX_IMAGE, TOKEN, ImageBytes, ImageFile

_OPEN = ("/healthz", "/readyz")  # asked by probes, which know no token


class TokenMiddleware:
    """Answers 401 to whoever does not know the token, before a body is read.

    It is taken as `Authorization: Bearer TOKEN`, and from browsers as a Basic password. Probes are
    let through without it, marked as a `stranger`.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(given).decode().partition(":")[2]
            except (binascii.Error, ValueError):
                given = ""
        if kind.lower() in ("bearer", "basic") and hmac.compare_digest(
            given.strip().encode(), self._token
        ):
            return await self._app(scope, receive, send)
        if scope["path"] in _OPEN:
            scope.setdefault("state", {})["stranger"] = True
            return await self._app(scope, receive, send)
        answer = JSONResponse(
            {"detail": f"a token is needed: Authorization: Bearer <{TOKEN}>"},
            401,
            {"WWW-Authenticate": 'Basic realm="reward server; any name, the token as password"'},
        )
        await answer(scope, receive, send)


class SiteMiddleware:
    """Refuses what a browser is made to send by the page of another site: 421 for a Host that is
    no name of this server (a name can be made to lead to any address, loopback too), 403 for a
    request that says that it comes from elsewhere. Browsers always send a Host, old probes may not.

    Args:
        app: the application that answers all other requests.
        names: host names by which the server may be asked, beside addresses, "localhost" and the
            machine's own names.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str] = ()) -> None:
        self._app = app
        own = ("localhost", socket.gethostname(), socket.getfqdn(), *names)
        known = frozenset(name.lower() for name in own)

        @lru_cache
        def is_ours(host: str) -> bool:
            try:
                name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
            except ValueError:
                return False
            return name in known or _is_address(name)

        self._is_ours = is_ours

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        origin = headers.get(b"origin")
        if host and not self._is_ours(host):
            answer = JSONResponse(
                {"detail": f"{host[:200]!r} is no name of this server (serve --allow-host NAME)"},
                421,
            )
        elif origin is not None and _place(origin.decode("latin-1")) != host:
            answer = JSONResponse({"detail": "a request from a page of another site"}, 403)
        else:
            return await self._app(scope, receive, send)
        await answer(scope, receive, send)


def _place(origin: str) -> str:
    """Host and port; "" for "null" and for nonsense."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def read_token(file: str | None) -> str | None:
    """The token: of a file, else of the environment; None if there is neither.

    Raises:
        ConfigError: the file cannot be read, or the token is not one word of printable ASCII
            characters.
    """
    source, text = TOKEN, os.environ.get(TOKEN)
    if file is not None:
        source = file
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read the token file {file}: {error}") from None
    if text is None:
        return None
    return clean_token(text, source)


def check_address(host: str, token: str | None, insecure: bool) -> None:
    """Refuses to be reachable from other machines without a token, unless that is asked for."""
    loopback = ip_address(host).is_loopback if _is_address(host) else host == "localhost"
    if not loopback and token is None and not insecure:
        raise ConfigError(
            f"--host {host} is reachable from other machines: set {TOKEN} or --token-file, or say "
            "--insecure"
        )


def check_folders(folders: Sequence[str]) -> tuple[Path, ...]:
    """The image folders without symbolic links; ConfigError if one is none."""
    for folder in folders:
        if not Path(folder).is_dir():
            raise ConfigError(f"--images {folder}: no such folder")
    return tuple(Path(folder).resolve() for folder in folders)


@dataclass(frozen=True)
class NamedFile(ImageRef):
    """A file inside of the image folders that a client named. It is held open only while it is
    read, and each time it is asked anew whether it may be.

    Attributes:
        path: path of the file, without symbolic links.
        size: number of bytes that the file must have; None for any number.
    """

    size: int | None = None

    def open(self) -> BinaryIO:
        """The file; RefusedError if the path leads elsewhere by now, or it has another size."""
        path = str(self.path)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        file = os.fdopen(descriptor, "rb")
        try:
            # What was opened is asked, not the path.
            status = os.fstat(descriptor)
            if os.readlink(f"/proc/self/fd/{descriptor}") != path or not S_ISREG(status.st_mode):
                raise RefusedError(f"image {path}: it was replaced while it was opened")
            if status.st_size > MAX_IMAGE:
                raise RefusedError(f"image {path}: more than {MAX_IMAGE:,} bytes")
            if self.size not in (None, status.st_size):
                raise RefusedError(
                    f"image {path}: {status.st_size} bytes on the server's machine and "
                    f"{self.size} on the client's, so not the same file"
                )
        except BaseException:
            file.close()
            raise
        return file


def open_wire_image(image: ImageFile | ImageBytes, folders: Sequence[Path]) -> ImageRef:
    """The image that a request names or holds, see `admit`; RefusedError for what is no base64."""
    if isinstance(image, ImageFile):
        return admit(ImageRef(image.path, view=image.view), folders, image.size)
    try:
        data = image.data()
    except ScoringError as error:
        raise RefusedError(str(error)) from None
    return admit(ImageRef(data=data, view=image.view), folders)


def admit(image: ImageRef, folders: Sequence[Path], size: int | None = None) -> ImageRef:
    """An image that a client names or sends, its file's size and its header checked.

    A file that is not there, or is no image, is left for rewards to fail on.

    Args:
        image: the image, with a path or a file's bytes.
        folders: folders that a path must lead into, without symbolic links.
        size: number of bytes that the file at the path must have; None for any number.

    Raises:
        RefusedError: the path is outside of the folders, the file is too large or of another size,
            or the image has more than `MAX_PIXELS` pixels.
        ExhaustedError: the machine is out of files or memory.
    """
    if image.data is None:
        image = _found(image, folders, size)
    elif len(image.data) > MAX_IMAGE:
        raise RefusedError(f"image: more than {MAX_IMAGE:,} bytes")
    check_pixels(image)
    return image


def _found(image: ImageRef, folders: Sequence[Path], size: int | None) -> ImageRef:
    """A file inside of the folders; without content if there is none."""
    path = image.path or ""
    reals = []
    for folder in folders:
        try:
            real = (folder / path).resolve()
        except (OSError, ValueError, RuntimeError):  # no path, or links in a circle
            continue
        if any(real.is_relative_to(each) for each in folders):
            reals.append(real)
    if not reals:
        raise RefusedError(
            f"image {path}: not inside of the server's image folders (serve --images FOLDER)"
        )
    for real in reals:
        if os.path.isfile(real):
            return NamedFile(str(real), view=image.view, size=size)
    return ImageRef(path, b"", view=image.view)
