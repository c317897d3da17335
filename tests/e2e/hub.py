"""The local Event Hubs server in a pod; messages are published over HTTP, one per line."""

import asyncio

import uvloop
from aiohttp import web

from support.eventhubs import Server

HUB = "insights-logs-kube-audit"


async def _serve() -> None:
    async with Server({HUB: 4}, host="0.0.0.0", port=5672) as server:
        hub = server.hubs[HUB]

        async def publish(request: web.Request) -> web.Response:
            for body in (await request.read()).splitlines():
                hub.publish(int(hub.choose(None).id), body)
            return await last(request)

        async def last(_: web.Request) -> web.Response:
            return web.json_response({one.id: one.last for one in hub.partitions})

        app = web.Application(client_max_size=2**26)
        app.add_routes([web.post("/", publish), web.get("/", last)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "0.0.0.0", 8080).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve())
