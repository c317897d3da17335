"""An HTTP proxy on loopback: CONNECT and absolute URIs, with or without authentication."""

import asyncio
from base64 import b64encode
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit


class Proxy:
    """Forwards only to the hosts in `routes`; `requested` lists all requests, each as HOST:PORT."""

    def __init__(self, *, credentials: str = "", status: int = 0) -> None:
        """Require `credentials` (user:password); with a `status`, refuse every request with it."""
        self.credentials = credentials
        self.status = status
        self.routes: dict[str, tuple[str, int]] = {}
        self.requested: list[str] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    @property
    def url(self) -> str:
        """Its URL without credentials."""
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
            url = urlsplit(target if "://" in target else f"//{target}")
            self.requested.append(f"{url.hostname}:{url.port or 80}")
            status = self.status or (407 if self._lacks_credentials(head) else 0)
            route = self.routes.get(self.requested[-1])
            if status or not route:
                writer.write(
                    f"HTTP/1.1 {status or 502} Refused\r\nContent-Length: 0\r\n\r\n".encode()
                )
                await writer.drain()
                writer.close()
                return
            to_reader, to_writer = await asyncio.open_connection(*route)
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            else:
                path = url._replace(scheme="", netloc="").geturl() or "/"
                to_writer.write(head.replace(target.encode(), path.encode(), 1))
            await asyncio.gather(_copy(reader, to_writer), _copy(to_reader, writer))

    def _lacks_credentials(self, head: bytes) -> bool:
        given = f"Proxy-Authorization: Basic {b64encode(self.credentials.encode()).decode()}"
        return bool(self.credentials) and given.encode() not in head


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()
