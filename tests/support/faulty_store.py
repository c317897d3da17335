"""A storage account with injectable faults: azurite behind an HTTP proxy."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
from aiohttp import web
from yarl import URL

from support.azurite import Azurite, azurite

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date"}


class FaultyStore:
    """A storage account. Forwarders use `front`; `back` has no faults."""

    def __init__(self, back: Azurite, client: aiohttp.ClientSession) -> None:
        self.back = back
        self.front = Azurite(0, 0)
        self.status = 0
        """Status returned for every PUT and DELETE instead of the store's own; 0 for none."""
        self.refused_path = ""
        """PUT and DELETE of blobs whose path contains this are refused with 503."""
        self.refused_listings = 0
        """Number of upcoming checkpoint listings that are refused with 503."""
        self.delay = 0.0
        """Seconds before each response."""
        self._client = client
        self._runner: web.ServerRunner | None = None

    @property
    def key(self) -> str:
        """The account's key."""
        return self.back.connection_string.split("AccountKey=")[1].split(";")[0]

    async def start(self) -> None:
        """Start listening; after a stop, on the same port."""
        self._runner = web.ServerRunner(web.Server(self._forward), shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.front.port).start()
        self.front.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Refuse connections and close those that are open."""
        if self._runner:
            await self._runner.cleanup()

    async def _forward(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        if self.delay:
            await asyncio.sleep(self.delay)
        refused = self.refused_path and self.refused_path in request.path
        if (status := 503 if refused else self.status) and request.method in {"PUT", "DELETE"}:
            return web.Response(status=status, headers={"x-ms-error-code": "Requested"})
        if self.refused_listings and "/checkpoint/" in request.query.get("prefix", ""):
            self.refused_listings -= 1
            return web.Response(status=503)
        url = URL(f"http://127.0.0.1:{self.back.port}{request.raw_path}", encoded=True)
        async with self._client.request(
            request.method,
            url,
            headers=request.headers,
            data=body or None,
            skip_auto_headers=["Content-Type"],  # part of the signature
        ) as response:
            headers = [(k, v) for k, v in response.headers.items() if k.lower() not in _HOP_BY_HOP]
            return web.Response(status=response.status, headers=headers, body=await response.read())


@asynccontextmanager
async def faulty_store() -> AsyncIterator[FaultyStore]:
    """Run an empty storage account."""
    async with AsyncExitStack() as stack:
        back = await stack.enter_async_context(azurite())
        client = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
        found = FaultyStore(back, client)
        await found.start()
        stack.push_async_callback(found.stop)
        yield found
