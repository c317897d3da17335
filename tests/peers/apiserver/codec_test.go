// Package apiserver compares the forwarder's requests with kube-apiserver's own code: the strict
// decoder of audit.k8s.io/v1, and the webhook backend that sinks are built for.
package apiserver

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/plugin/pkg/audit/webhook"

	"peers/local"
)

func forwarded(t *testing.T, maxEvents string, logs ...[]byte) *local.Sink {
	t.Helper()
	hub, sink := local.StartHub(t, 1), local.StartSink(t)
	hub.Publish(t, local.Messages(t, logs...)...)
	forwarder := local.StartForwarder(t, map[string]string{
		"EhubNamespaceConnectionString": hub.ConnectionString,
		"WebSinkURL":                    sink.URL,
		"WebSinkMaxEvents":              maxEvents,
	})
	local.Eventually(t, "everything is delivered", func() bool { return forwarder.Delivered() == len(logs) })
	return sink
}

// The strict codec accepts every body, including those with completed events.
func TestTheStrictCodecAcceptsEveryBody(t *testing.T) {
	scheme := runtime.NewScheme()
	utilruntime.Must(auditv1.AddToScheme(scheme))
	utilruntime.Must(auditinternal.AddToScheme(scheme))
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDecoder(
		schema.GroupVersion{Group: "audit.k8s.io", Version: runtime.APIVersionInternal})
	logs := local.RealEvents(t)
	for _, event := range local.RealEvents(t) {
		if cut := len(event) * 3 / 4; len(event) > 1500 {
			logs = append(logs, event[:cut])
		}
	}
	for _, maxEvents := range []string{"1", "100"} {
		t.Run("maxEvents "+maxEvents, func(t *testing.T) {
			bodies, _ := forwarded(t, maxEvents, logs...).Posts()
			for _, body := range bodies {
				if _, _, err := decoder.Decode(body, nil, nil); err != nil {
					t.Errorf("%v: %.300s", err, body)
				}
			}
		})
	}
}

// The requests have the same format as those of kube-apiserver.
func TestRequestsAreLikeThoseOfTheWebhookBackend(t *testing.T) {
	sink := local.StartSink(t)
	file := filepath.Join(t.TempDir(), "kubeconfig")
	config := "apiVersion: v1\nkind: Config\nclusters: [{name: sink, cluster: {server: '" + sink.URL + "/k8s_audit'}}]\n" +
		"contexts: [{name: sink, context: {cluster: sink}}]\ncurrent-context: sink\n"
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	backend, err := webhook.NewBackend(file, auditv1.SchemeGroupVersion, wait.Backoff{Duration: time.Second, Steps: 3}, nil)
	if err != nil {
		t.Fatal(err)
	}
	event := &auditinternal.Event{Level: auditinternal.LevelMetadata, AuditID: "1", Stage: auditinternal.StageResponseComplete,
		RequestURI: "/api", Verb: "get"}
	if !backend.ProcessEvents(event) {
		t.Fatal("the backend did not post")
	}
	expected, expectedHeaders := sink.Posts()
	actual, actualHeaders := forwarded(t, "100", local.RealEvents(t)[0]).Posts()
	if got, want := actualHeaders[0].Get("Content-Type"), expectedHeaders[0].Get("Content-Type"); got != want {
		t.Errorf("Content-Type %q, not %q", got, want)
	}
	for _, body := range [][]byte{expected[0], actual[0]} {
		object, kind, err := audit.Codecs.UniversalDecoder().Decode(body, nil, &auditinternal.EventList{})
		if err != nil || kind.Kind != "EventList" || len(object.(*auditinternal.EventList).Items) != 1 {
			t.Errorf("%v, %v: %.300s", kind, err, body)
		}
	}
}
