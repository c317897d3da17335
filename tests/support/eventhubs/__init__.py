"""A local Event Hubs: an AMQP 1.0 server that the real clients take for the service.

Inside a test::

    async with Server({"insights-logs-kube-audit": 4}) as server:
        hub = server.hubs["insights-logs-kube-audit"]
        hub.publish(0, body)  # in process, without AMQP; returns the sequence number
        client = EventHubConsumerClient.from_connection_string(
            server.connection_string("insights-logs-kube-audit"), "$Default"
        )
        server.faults.drop()  # and other misbehaviour, by order

As a process: ``python -m support.eventhubs --port 5672 --hub NAME=PARTITIONS`` prints a
connection string.

``server.receivers`` are the links that read (hub, group, partition, epoch, credit) and
``server.connections`` all connections. Partitions show ``begin``, ``last``,
``last_enqueued_time``, ``messages`` and can ``expire(before)``. ``hub.groups`` may be added to.
Everything runs in the event loop that entered the server, and is called from there.
"""

from support.eventhubs.faults import Faults
from support.eventhubs.hub import Hub, Message, Partition
from support.eventhubs.server import Server

__all__ = ["Faults", "Hub", "Message", "Partition", "Server"]
