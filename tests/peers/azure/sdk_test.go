// Package azure checks the forwarder and the local Event Hubs server against the Go SDK and the Java client: the
// producer, the receiver, and the processor with its blob store. The forwarder continues from its checkpoints.
package azure

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs"
	v1checkpoints "github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/checkpoints"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2/checkpoints"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"peers/local"
)

// processor is a consumer that shares partitions through a blob container, in either version of the SDK.
type processor interface {
	Run(ctx context.Context) error
}

// consumer is a running processor that checkpoints every message.
type consumer struct {
	count func() int
	stop  func()
}

// consumeV2 starts a Processor of azeventhubs 2.
func consumeV2(t *testing.T, hub *local.Hub, store, group string) *consumer {
	t.Helper()
	client, err := azeventhubs.NewConsumerClientFromConnectionString(hub.ConnectionString, local.HubName, group, nil)
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := checkpoints.NewBlobStore(containerOf(t, store), nil)
	if err != nil {
		t.Fatal(err)
	}
	earliest := azeventhubs.StartPosition{Earliest: new(bool)}
	*earliest.Earliest = true
	processor, err := azeventhubs.NewProcessor(client, blobs, &azeventhubs.ProcessorOptions{
		UpdateInterval:              time.Second,
		PartitionExpirationDuration: 5 * time.Second,
		StartPositions:              azeventhubs.StartPositions{Default: earliest},
	})
	if err != nil {
		t.Fatal(err)
	}
	return run(t, processor, func(ctx context.Context, read *atomic.Int64) func() {
		partition := processor.NextPartitionClient(ctx)
		if partition == nil {
			return nil
		}
		return func() {
			defer partition.Close(context.Background())
			readAll(ctx, partition.ReceiveEvents, func(event *azeventhubs.ReceivedEventData) {
				read.Add(1)
				_ = partition.UpdateCheckpoint(context.Background(), event, nil)
			})
		}
	})
}

// consumeV1 starts a Processor of azeventhubs 1.4, which Falco's k8saudit-aks plugin uses.
func consumeV1(t *testing.T, hub *local.Hub, store, group string) *consumer {
	t.Helper()
	client, err := v1.NewConsumerClientFromConnectionString(hub.ConnectionString, local.HubName, group, nil)
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := v1checkpoints.NewBlobStore(containerOf(t, store), nil)
	if err != nil {
		t.Fatal(err)
	}
	earliest := true
	processor, err := v1.NewProcessor(client, blobs, &v1.ProcessorOptions{
		UpdateInterval:              time.Second,
		PartitionExpirationDuration: 5 * time.Second,
		StartPositions:              v1.StartPositions{Default: v1.StartPosition{Earliest: &earliest}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return run(t, processor, func(ctx context.Context, read *atomic.Int64) func() {
		partition := processor.NextPartitionClient(ctx)
		if partition == nil {
			return nil
		}
		return func() {
			defer partition.Close(context.Background())
			readAll(ctx, partition.ReceiveEvents, func(event *v1.ReceivedEventData) {
				read.Add(1)
				_ = partition.UpdateCheckpoint(context.Background(), event, nil)
			})
		}
	})
}

// readAll receives from a partition client of either version until the context ends.
func readAll[Event, Options any](
	ctx context.Context, receive func(context.Context, int, Options) ([]Event, error), take func(Event),
) {
	var none Options
	for ctx.Err() == nil {
		wait, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		events, _ := receive(wait, 10, none)
		cancel()
		for _, event := range events {
			take(event)
		}
	}
}

// run starts the processor and reads each partition that it claims.
func run(t *testing.T, processor processor, next func(context.Context, *atomic.Int64) func()) *consumer {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	var received atomic.Int64
	work.Go(func() { _ = processor.Run(ctx) })
	work.Go(func() {
		for read := next(ctx, &received); read != nil; read = next(ctx, &received) {
			work.Go(read)
		}
	})
	var once sync.Once
	stop := func() { once.Do(func() { cancel(); work.Wait() }) }
	t.Cleanup(stop)
	return &consumer{func() int { return int(received.Load()) }, stop}
}

// java runs tests/peers/java/Client.java, which prints a line for each message.
func java(t *testing.T, arguments ...string) *local.Process {
	t.Helper()
	libraries := filepath.Join(local.Root(), ".bin", "java")
	if _, err := os.Stat(libraries); err != nil {
		t.Skip("the Java client needs java and mvn")
	}
	client := filepath.Join(local.Root(), "tests", "peers", "java", "Client.java")
	quick := []string{"-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-classpath", libraries + "/*", client}
	return local.Run(t, nil, "java", append(quick, arguments...)...)
}

// consumeJava starts the EventProcessorClient of the Java client, which writes names in lower case and no offsets.
func consumeJava(t *testing.T, hub *local.Hub, store, group string) *consumer {
	t.Helper()
	process := java(t, "read", hub.ConnectionString, local.HubName, group, store, local.Container)
	return &consumer{func() int { return len(process.Lines()) }, func() { process.Stop(t) }}
}

func containerOf(t *testing.T, store string) *container.Client {
	t.Helper()
	client, err := container.NewClientFromConnectionString(store, local.Container, nil)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func events(prefix string, count int) [][]byte {
	var made [][]byte
	for number := range count {
		made = append(made, fmt.Appendf(nil, `{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata",`+
			`"auditID":"%s-%d","stage":"ResponseComplete","requestURI":"/api","verb":"get","user":{"username":"u"},`+
			`"requestReceivedTimestamp":"2026-11-23T09:14:10.000000Z","stageTimestamp":"2026-11-23T09:14:10.000000Z"}`, prefix, number))
	}
	return made
}

// publish sends each event as a separate message.
func publish(t *testing.T, hub *local.Hub, events [][]byte) {
	t.Helper()
	var messages [][]byte
	for _, event := range events {
		messages = append(messages, local.Message(t, event))
	}
	hub.Publish(t, messages...)
}

func forward(t *testing.T, hub *local.Hub, store, group, sink string) *local.Forwarder {
	t.Helper()
	return local.StartForwarder(t, map[string]string{
		"EhubNamespaceConnectionString": hub.ConnectionString,
		"BlobStorageConnectionString":   store,
		"ConsumerGroup":                 group,
		"WebSinkURL":                    sink,
		"CheckpointInterval":            "1",
	})
}

var clients = map[string]func(t *testing.T, hub *local.Hub, store, group string) *consumer{
	"azeventhubs 1.4": consumeV1,
	"azeventhubs 2.0": consumeV2,
	"Java":            consumeJava,
}

// A partition client without a Processor reads what the producer sent.
func TestThePartitionClientReads(t *testing.T) {
	hub := local.StartHub(t, 1)
	publish(t, hub, events("read", 5))
	readFive(t, hub)
}

// Messages of the Java client arrive. Before, it requests the partitions, with a token in the request itself.
func TestTheJavaClientSends(t *testing.T) {
	hub := local.StartHub(t, 1)
	sent := java(t, "send", hub.ConnectionString, local.HubName, "a", "b", "c", "d", "e")
	local.Eventually(t, "the Java client sends", func() bool { return len(sent.Lines()) == 5 })
	if last := sent.Lines()[4]; last != "4" {
		t.Errorf("the last sequence number is %s", last)
	}
	readFive(t, hub)
}

func readFive(t *testing.T, hub *local.Hub) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), local.Patience)
	defer cancel()
	client, err := azeventhubs.NewConsumerClientFromConnectionString(hub.ConnectionString, local.HubName, "$Default", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close(ctx)
	earliest := true
	partition, err := client.NewPartitionClient("0", &azeventhubs.PartitionClientOptions{
		StartPosition: azeventhubs.StartPosition{Earliest: &earliest},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer partition.Close(ctx)
	received, err := partition.ReceiveEvents(ctx, 5, nil)
	if err != nil || len(received) != 5 {
		t.Fatalf("%d of 5 events, %v", len(received), err)
	}
}

// The forwarder continues from the checkpoints of a processor.
func TestTheForwarderTakesOver(t *testing.T) {
	for version, consume := range clients {
		for _, group := range []string{"$Default", local.Group} {
			t.Run(version+" "+group, func(t *testing.T) {
				t.Parallel()
				hub, sink := local.StartHub(t, 2), local.StartSink(t)
				store := local.StartAzurite(t)
				publish(t, hub, events("before", 20))
				consumer := consume(t, hub, store, group)
				local.Eventually(t, "the Processor reads everything", func() bool { return consumer.count() >= 20 })
				consumer.stop()
				publish(t, hub, events("after", 10))
				forwarder := forward(t, hub, store, group, sink.URL)
				local.Eventually(t, "the forwarder delivers", func() bool { return forwarder.Delivered() >= 10 })
				if status := forwarder.Stop(t); status != 0 {
					t.Errorf("exit status %d", status)
				}
				if got := len(sink.Events(t)); got != 10 {
					t.Errorf("%d events delivered, 10 came after the Processor's checkpoints", got)
				}
			})
		}
	}
}

// A processor continues from the checkpoints of the forwarder, in a group with a lower-case name.
func TestTheProcessorTakesOver(t *testing.T) {
	for version, consume := range clients {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			hub, sink := local.StartHub(t, 2), local.StartSink(t)
			store := local.StartAzurite(t)
			publish(t, hub, events("before", 20))
			forwarder := forward(t, hub, store, local.Group, sink.URL)
			local.Eventually(t, "the forwarder delivers", func() bool { return forwarder.Delivered() == 20 })
			if status := forwarder.Stop(t); status != 0 {
				t.Errorf("exit status %d", status)
			}
			publish(t, hub, events("after", 10))
			consumer := consume(t, hub, store, local.Group)
			local.Eventually(t, "the Processor reads the rest", func() bool { return consumer.count() >= 10 })
			time.Sleep(3 * time.Second) // time for duplicates to arrive
			if consumer.count() != 10 {
				t.Errorf("%d messages read, 10 came after the forwarder's checkpoints", consumer.count())
			}
		})
	}
}

// A Go Processor and the forwarder do not see each other in `$Default`. Both read everything, and the
// forwarder reports it.
func TestBothAtOnceAreReported(t *testing.T) {
	hub, sink := local.StartHub(t, 2), local.StartSink(t)
	store := local.StartAzurite(t)
	publish(t, hub, events("first", 10))
	consumer := consumeV1(t, hub, store, "$Default")
	local.Eventually(t, "the Processor reads everything", func() bool { return consumer.count() >= 10 })
	forwarder := forward(t, hub, store, "$Default", sink.URL)
	local.Eventually(t, "the forwarder reports the Processor", func() bool {
		return len(forwarder.Logged("consumer group is read by another program")) > 0
	})
	publish(t, hub, events("both", 10))
	local.Eventually(t, "nothing is lost", func() bool {
		missing := map[string]bool{}
		for _, event := range events("both", 10) {
			missing[local.Key(t, event)] = true
		}
		for _, event := range sink.Events(t) {
			delete(missing, local.Key(t, event))
		}
		return len(missing) == 0
	})
}
