"""AMQP over WebSockets on the same port, bridged to an ordinary connection."""

import asyncio
import socket
import time
from email.utils import formatdate
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from support.eventhubs.server import Server


def take_over(server: "Server", transport: asyncio.Transport, data: bytes) -> None:
    """Pass a transport, whose first bytes were ``data``, to an HTTP server."""

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/$servicebus/websocket":
            date = formatdate(time.time() + server.faults.clock_offset, usegmt=True)
            return web.Response(status=404, headers={"Date": date})
        outer = web.WebSocketResponse(protocols=("AMQPWSB10",), max_msg_size=0)
        await outer.prepare(request)
        near, far = socket.socketpair()
        await asyncio.get_running_loop().connect_accepted_socket(server.connection, far)
        reader, writer = await asyncio.open_connection(sock=near)

        async def deliver() -> None:
            while data := await reader.read(1 << 16):
                await outer.send_bytes(data)
            transport.abort()

        delivering = asyncio.create_task(deliver())
        try:
            async for message in outer:
                writer.write(message.data)
                await writer.drain()
        finally:
            delivering.cancel()
            writer.close()
        return outer

    protocol = web.Server(serve)()
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    protocol.data_received(data)
