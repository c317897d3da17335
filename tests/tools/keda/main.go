// Keda runs KEDA's azure-eventhub scaler. Standard input is what KEDA reads from a ScaledObject and its TriggerAuthentication:
// {"metadata": {...}, "connection": "...", "storageConnection": "...", "provider": "..."}, the provider of an identity.
// With connection strings it prints the metric and whether KEDA activates; with an identity the hosts that KEDA asks.
//
// The package of the scaler imports seventy others, from Kafka to Datadog, and takes over 20 minutes to build. So the two files
// that are needed of it are compiled as part of this program: make copies them from the module into this folder.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/kedacore/keda/v2/apis/keda/v1alpha1"
	"github.com/kedacore/keda/v2/pkg/scalers/scalersconfig"
	_ "github.com/rcrowley/go-metrics" // the two files import this and the next one
	_ "k8s.io/metrics/pkg/apis/external_metrics"
)

type trigger struct {
	Metadata          map[string]string
	Connection        string
	StorageConnection string
	Provider          v1alpha1.PodIdentityProvider
}

func run(ctx context.Context) error {
	var given trigger
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil {
		return err
	}
	config := &scalersconfig.ScalerConfig{
		TriggerMetadata:   given.Metadata,
		AuthParams:        map[string]string{"connection": given.Connection, "storageConnection": given.StorageConnection},
		PodIdentity:       v1alpha1.AuthPodIdentity{Provider: given.Provider},
		GlobalHTTPTimeout: 10 * time.Second,
	}
	scaler, err := NewAzureEventHubScaler(config)
	if err != nil {
		return err
	}
	defer scaler.Close(ctx)
	if given.Provider != "" {
		hub := scaler.(*azureEventHubScaler).metadata.EventHubInfo
		fmt.Println(hub.Namespace+"."+hub.ServiceBusEndpointSuffix, hub.StorageAccountName+"."+hub.BlobStorageEndpoint)
		return nil
	}
	metrics, active, err := scaler.GetMetricsAndActivity(ctx, "lag")
	if err != nil {
		return err
	}
	fmt.Println(metrics[0].Value.Value(), active)
	return nil
}

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
