import com.azure.messaging.eventhubs.EventData;
import com.azure.messaging.eventhubs.EventHubClientBuilder;
import com.azure.messaging.eventhubs.EventProcessorClient;
import com.azure.messaging.eventhubs.EventProcessorClientBuilder;
import com.azure.messaging.eventhubs.checkpointstore.blob.BlobCheckpointStore;
import com.azure.messaging.eventhubs.models.EventPosition;
import com.azure.messaging.eventhubs.models.SendOptions;
import com.azure.storage.blob.BlobContainerAsyncClient;
import com.azure.storage.blob.BlobContainerClientBuilder;
import java.time.Duration;
import java.util.List;

/**
 * The Java client for the local hub. "send CONNECTION HUB BODY..." sends the bodies to the partitions
 * in turn and prints the partition's last sequence number. "read CONNECTION HUB GROUP STORE CONTAINER" prints each message and checkpoints it, until SIGTERM.
 */
class Client {
    public static void main(String[] arguments) throws Exception {
        if (arguments[0].equals("send")) {
            send(arguments[1], arguments[2], List.of(arguments).subList(3, arguments.length));
        } else {
            read(arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
        }
    }

    private static void send(String connection, String hub, List<String> bodies) {
        try (var producer = new EventHubClientBuilder().connectionString(connection, hub).buildProducerClient()) {
            var partitions = producer.getPartitionIds().stream().toList();
            for (int number = 0; number < bodies.size(); number++) {
                var partition = partitions.get(number % partitions.size());
                producer.send(List.of(new EventData(bodies.get(number))), new SendOptions().setPartitionId(partition));
                System.out.println(producer.getPartitionProperties(partition).getLastEnqueuedSequenceNumber());
            }
        }
    }

    private static void read(String connection, String hub, String group, String store, String container) throws Exception {
        BlobContainerAsyncClient blobs = new BlobContainerClientBuilder().connectionString(store).containerName(container).buildAsyncClient();
        EventProcessorClient processor = new EventProcessorClientBuilder()
            .connectionString(connection, hub)
            .consumerGroup(group)
            .checkpointStore(new BlobCheckpointStore(blobs))
            .initialPartitionEventPosition(id -> EventPosition.earliest())
            .loadBalancingUpdateInterval(Duration.ofSeconds(1))
            .partitionOwnershipExpirationInterval(Duration.ofSeconds(5))
            .processEvent(context -> {
                System.out.println(context.getEventData().getBodyAsString());
                context.updateCheckpoint();
            })
            .processError(context -> System.err.println(context.getThrowable()))
            .buildEventProcessorClient();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            System.err.close(); // the client prints errors of cancelled tasks
            processor.stop();
        }));
        processor.start();
        Thread.currentThread().join();
    }
}
