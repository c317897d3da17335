package local

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
)

// HubName is the event hub that Azure Monitor writes to by default.
const HubName = "insights-logs-kube-audit"

// Group is a consumer group beside $Default.
const Group = "falco"

// Container is the blob container of the forwarder's default settings.
const Container = "kubeauditlogcontainer"

// Hub is the local Event Hubs server with one event hub.
type Hub struct {
	ConnectionString string
}

// StartHub starts an event hub on a loopback address of its own (127.0.0.0/8 on Linux) and the standard port. Names of
// checkpoints contain the namespace, and clients do not agree whether it includes a non-standard port.
func StartHub(t *testing.T, partitions int) *Hub {
	t.Helper()
	host := fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
	process := Python(t, nil, "support.eventhubs", "--host", host, "--hub", HubName+"="+strconv.Itoa(partitions), "--group", Group)
	Eventually(t, "the local hub prints its connection string", func() bool { return len(process.Lines()) > 0 })
	return &Hub{ConnectionString: strings.Replace(process.Lines()[0], ":5672", "", 1)}
}

// Publish sends the messages to the partitions in turn, with the producer of the Go SDK.
func (h *Hub) Publish(t *testing.T, messages ...[]byte) {
	t.Helper()
	ctx := context.Background()
	producer, err := azeventhubs.NewProducerClientFromConnectionString(h.ConnectionString, HubName, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close(ctx)
	properties, err := producer.GetEventHubProperties(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	for number, message := range messages {
		partition := properties.PartitionIDs[number%len(properties.PartitionIDs)]
		batch, err := producer.NewEventDataBatch(ctx, &azeventhubs.EventDataBatchOptions{PartitionID: &partition})
		if err != nil {
			t.Fatal(err)
		}
		if err := batch.AddEventData(&azeventhubs.EventData{Body: message}, nil); err != nil {
			t.Fatal(err)
		}
		if err := producer.SendEventDataBatch(ctx, batch, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// StartAzurite starts a storage account with the container and returns its connection string.
func StartAzurite(t *testing.T) string {
	t.Helper()
	// The well-known account of the emulator, documented by Microsoft. Not a secret.
	const name, key = "devstoreaccount1", "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
	port := FreePort(t)
	script := filepath.Join(Root(), ".bin", "js", "node_modules", "azurite", "dist", "src", "blob", "main.js")
	Run(t, nil, "node", script, "--blobPort", strconv.Itoa(port), "--inMemoryPersistence", "--silent",
		"--skipApiVersionCheck", "--disableTelemetry")
	Eventually(t, "azurite listens", func() bool { return dial(port) })
	connection := "DefaultEndpointsProtocol=http;AccountName=" + name + ";AccountKey=" + key +
		";BlobEndpoint=http://127.0.0.1:" + strconv.Itoa(port) + "/" + name + ";"
	client, err := container.NewClientFromConnectionString(connection, Container, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Create(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	return connection
}

// RealEvents returns audit events of a real kube-apiserver, one of each kind.
func RealEvents(t *testing.T) [][]byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(Root(), "tests", "support", "events", "audit-events.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var events [][]byte
	for line := range strings.Lines(string(text)) {
		events = append(events, []byte(strings.TrimSuffix(line, "\n")))
	}
	return events
}

// Message wraps events as Azure Monitor does; a log may be truncated.
func Message(t *testing.T, logs ...[]byte) []byte {
	t.Helper()
	type properties struct {
		Log string `json:"log"`
	}
	type record struct {
		Category   string     `json:"category"`
		Properties properties `json:"properties"`
		Time       string     `json:"time"`
	}
	var records []record
	for _, log := range logs {
		records = append(records, record{"kube-audit", properties{string(log) + "\n"}, "2026-11-23T09:14:10.0000000Z"})
	}
	message, err := json.Marshal(map[string]any{"records": records})
	if err != nil {
		t.Fatal(err)
	}
	return message
}

// Messages wraps events in batches of 20, as Azure Monitor does; an event above 32 KiB is a message of its own.
func Messages(t *testing.T, events ...[]byte) [][]byte {
	t.Helper()
	var messages [][]byte
	var batch [][]byte
	flush := func() {
		if len(batch) > 0 {
			messages, batch = append(messages, Message(t, batch...)), nil
		}
	}
	for _, event := range events {
		if len(event) > 32<<10 {
			messages = append(messages, Message(t, event))
			continue
		}
		if batch = append(batch, event); len(batch) == 20 {
			flush()
		}
	}
	flush()
	return messages
}
