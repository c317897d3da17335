"""Metrics and probes over HTTP."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CONTENT_TYPE_LATEST

from forwarder.health import Health
from forwarder.metrics import Metrics


@asynccontextmanager
async def serve(port: int, metrics: Metrics, health: Health) -> AsyncIterator[None]:
    """Serve /metrics, /livez and /readyz on all addresses; port 0 turns them off."""

    async def exposition(_: web.Request) -> web.Response:
        health.observe(metrics)
        return web.Response(
            body=metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    def probe(reasons: Callable[[], list[str]]) -> Handler:
        async def answer(_: web.Request) -> web.Response:
            found = reasons()
            return web.json_response({"reasons": found}, status=503 if found else 200)

        return answer

    app = web.Application()
    app.router.add_get("/metrics", exposition)
    app.router.add_get("/livez", probe(health.not_live))
    app.router.add_get("/readyz", probe(health.not_ready))
    runner = web.AppRunner(app, access_log=None)
    if port:
        await runner.setup()
        await web.TCPSite(runner, port=port).start()
    try:
        yield
    finally:
        await runner.cleanup()
