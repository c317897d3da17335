"""A local Event Hubs server: AMQP 1.0, compatible with the clients of the Azure SDKs.

Inside a test::

    async with Server({"insights-logs-kube-audit": 4}) as server:
        hub = server.hubs["insights-logs-kube-audit"]
        hub.publish(0, body)  # in process, without AMQP; returns the sequence number
        client = EventHubConsumerClient.from_connection_string(
            server.connection_string("insights-logs-kube-audit"), "$Default"
        )
        server.faults.drop()  # or another fault

As a process: ``python -m support.eventhubs --port 5672 --hub NAME=PARTITIONS`` prints a
connection string.

``server.receivers`` are the attached receivers (hub, group, partition, epoch, credit), and
``server.connections`` all connections. A partition has ``begin``, ``last``,
``last_enqueued_time``, ``messages`` and ``expire(before)``. Consumer groups can be added to
``hub.groups``. The server is not thread-safe: call it only from the event loop that runs it.
"""

from support.eventhubs.faults import Faults
from support.eventhubs.hub import Hub, Message, Partition
from support.eventhubs.server import Server

__all__ = ["Faults", "Hub", "Message", "Partition", "Server"]
