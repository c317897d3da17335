// Keda prints the sequence number of the checkpoint that KEDA finds for partition 0, with KEDA's own code. Standard input is what
// KEDA reads from a ScaledObject and its TriggerAuthentication: {"metadata": {...}, "connection": "...", "storageConnection": "..."}.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/go-logr/logr"
	"github.com/kedacore/keda/v2/apis/keda/v1alpha1"
	"github.com/kedacore/keda/v2/pkg/scalers/azure"
)

type trigger struct {
	Metadata          map[string]string
	Connection        string
	StorageConnection string
}

func checkpoint() (int64, error) {
	var given trigger
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil {
		return 0, err
	}
	suffix, err := azure.ParseEnvironmentProperty(given.Metadata, azure.DefaultEndpointSuffixKey, func(env azure.AzEnvironment) (string, error) {
		return env.ServiceBusEndpointSuffix, nil
	})
	if err != nil {
		return 0, err
	}
	info := azure.EventHubInfo{
		EventHubConnection:       given.Connection,
		EventHubConsumerGroup:    given.Metadata["consumerGroup"],
		BlobContainer:            given.Metadata["blobContainer"],
		Namespace:                given.Metadata["eventHubNamespace"],
		EventHubName:             given.Metadata["eventHubName"],
		CheckpointStrategy:       given.Metadata["checkpointStrategy"],
		ServiceBusEndpointSuffix: suffix,
	}
	// Only this is not in the package: it is what the scaler does with a connection string of a namespace.
	if info.EventHubConnection != "" && !azure.HasEventHubEntityPath(info.EventHubConnection) {
		info.EventHubConnection += ";EntityPath=" + info.EventHubName
	}
	client, err := azure.GetStorageBlobClient(logr.Discard(), v1alpha1.AuthPodIdentity{}, given.StorageConnection, "", "", 10*time.Second)
	if err != nil {
		return 0, err
	}
	found, err := azure.GetCheckpointFromBlobStorage(context.Background(), client, info, "0")
	return found.SequenceNumber, err
}

func main() {
	number, err := checkpoint()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(number)
}
