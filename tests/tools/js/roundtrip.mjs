// Sends with the JavaScript client and reads back: roundtrip.mjs CONNECTION_STRING HUB
// Prints one JSON object: what each way of reading found, as [partition key, body, property, sequence number].
import { createRequire } from "node:module";

// The packages lie in the working directory, not beside this file.
const require = createRequire(`${process.cwd()}/`);
const {
  EventHubProducerClient,
  EventHubConsumerClient,
  earliestEventPosition,
  latestEventPosition,
} = require("@azure/event-hubs");

const [connectionString, hub] = process.argv.slice(2);
const producer = new EventHubProducerClient(connectionString, hub);
const consumer = new EventHubConsumerClient("$Default", connectionString, hub);

async function send(bodies, options) {
  const batch = await producer.createBatch(options);
  for (const body of bodies) batch.tryAdd({ body, properties: { body } });
  await producer.sendBatch(batch);
}

// Reads partition 0 until `wanted` events have come, and calls `started` once it reads.
async function read(wanted, startPosition, started) {
  const events = [];
  let subscription;
  await new Promise((resolve, reject) => {
    const handlers = {
      async processInitialize() {
        // The link attaches after this call; a moment later it has its position.
        if (started) setTimeout(() => started().catch(reject), 500);
      },
      async processEvents(received) {
        events.push(...received);
        if (events.length >= wanted) resolve();
      },
      async processError(error) {
        reject(error);
      },
    };
    subscription = consumer.subscribe("0", handlers, { startPosition, maxWaitTimeInSeconds: 1 });
  });
  await subscription.close();
  return events.map((e) => [e.partitionKey ?? null, e.body, e.properties.body, e.sequenceNumber]);
}

const results = {};
results.partitions = await producer.getPartitionIds();
await send(["a", "b"], { partitionId: "0" });
await send(["c", "d"], { partitionKey: "device" });
await send(["e"], {});
results.properties = await producer.getPartitionProperties("0");
results.earliest = await read(5, earliestEventPosition);
results.bySequenceNumber = await read(2, { sequenceNumber: 2 });
results.inclusive = await read(3, { sequenceNumber: 2, isInclusive: true });
results.latest = await read(1, latestEventPosition, () => send(["f"], { partitionId: "0" }));
await producer.close();
await consumer.close();
process.stdout.write(JSON.stringify(results));
