// Package crowdsec checks the forwarder against CrowdSec's k8s-audit data source.
package crowdsec

import (
	"context"
	"fmt"
	"testing"

	kubernetesaudit "github.com/crowdsecurity/crowdsec/pkg/acquisition/modules/kubernetesaudit"
	"github.com/crowdsecurity/crowdsec/pkg/metrics"
	"github.com/crowdsecurity/crowdsec/pkg/types"
	log "github.com/sirupsen/logrus"
	"gopkg.in/tomb.v2"

	"peers/local"
)

// start runs the data source and returns its URL and its output channel.
func start(t *testing.T) (string, <-chan types.Event) {
	t.Helper()
	port := local.FreePort(t)
	source := &kubernetesaudit.KubernetesAuditSource{}
	config := fmt.Sprintf("source: k8s-audit\nlisten_addr: 127.0.0.1\nlisten_port: %d\nwebhook_path: /audit\n", port)
	if err := source.Configure([]byte(config), log.WithField("type", "k8s-audit"), metrics.AcquisitionMetricsLevelNone); err != nil {
		t.Fatal(err)
	}
	out, dying := make(chan types.Event, 10_000), &tomb.Tomb{}
	if err := source.StreamingAcquisition(context.Background(), out, dying); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		dying.Kill(nil)
		_ = dying.Wait()
	})
	return fmt.Sprintf("http://127.0.0.1:%d/audit", port), out
}

func TestEveryDeliveredEventIsYielded(t *testing.T) {
	hub := local.StartHub(t, 1)
	url, yielded := start(t)
	events := local.RealEvents(t)
	hub.Publish(t, local.Message(t, events[0])) // a list with one event
	forwarder := local.StartForwarder(t, map[string]string{
		"EhubNamespaceConnectionString": hub.ConnectionString,
		"WebSinkURL":                    url,
	})
	local.Eventually(t, "the first event is delivered", func() bool { return forwarder.Delivered() == 1 })
	hub.Publish(t, local.Messages(t, events[1:]...)...)
	local.Eventually(t, "everything is delivered", func() bool { return forwarder.Delivered() == len(events) })
	if got := len(yielded); got != len(events) {
		t.Errorf("%d of %d events yielded", got, len(events))
	}
	missing := map[string]bool{}
	for _, event := range events {
		missing[local.Key(t, event)] = true
	}
	for range len(yielded) {
		delete(missing, local.Key(t, []byte((<-yielded).Line.Raw)))
	}
	if len(missing) > 0 {
		t.Errorf("not yielded: %v", missing)
	}
}
