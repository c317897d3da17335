"""Metrics, probes and the status page over HTTP."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CONTENT_TYPE_LATEST

from forwarder.config.settings import Settings
from forwarder.metrics import Metrics
from forwarder.server.health import Health
from forwarder.server.page import page
from forwarder.server.status import report


@asynccontextmanager
async def serve(settings: Settings, metrics: Metrics, health: Health) -> AsyncIterator[None]:
    """Serve /metrics, /livez, /readyz and /status on all addresses; port 0 turns them off."""

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

    async def status(request: web.Request) -> web.Response:
        found = report(settings, health)
        if "text/html" in request.headers.get("Accept", ""):
            return web.Response(text=page(found), content_type="text/html")
        return web.json_response(found)

    app = web.Application()
    app.router.add_get("/status", status)
    app.router.add_get("/metrics", exposition)
    app.router.add_get("/livez", probe(health.not_live))
    app.router.add_get("/readyz", probe(health.not_ready))
    runner = web.AppRunner(app, access_log=None)
    if settings.http_port:
        await runner.setup()
        await web.TCPSite(runner, port=settings.http_port).start()
    try:
        yield
    finally:
        await runner.cleanup()
