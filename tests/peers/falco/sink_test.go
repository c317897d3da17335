package falco

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"peers/local"
)

// Events of unusual size or depth, and two that the forwarder completes: one that AKS truncated, and one with a time that
// Go cannot parse.
func odd() [][]byte {
	event := func(id, object string) []byte {
		return []byte(`{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Request","auditID":"` + id +
			`","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/default/pods","verb":"create",` +
			`"user":{"username":"eve"},"objectRef":{"resource":"pods","namespace":"default","apiVersion":"v1"},` +
			`"requestReceivedTimestamp":"2026-11-23T09:14:10.000000Z","stageTimestamp":"2026-11-23T09:14:10.000000Z",` +
			`"requestObject":` + object + `}`)
	}
	return [][]byte{
		event("deep", strings.Repeat(`{"a":`, 250)+"1"+strings.Repeat("}", 250)),
		event("large", `{"a":"`+strings.Repeat("x", 240_000)+`"}`),
		event("cut", `{"a":"`+strings.Repeat("x", 16_000)+`"}`)[:16_000],
		bytes.Replace(event("time", "{}"), []byte(`"stageTimestamp":"2026-11-23T`), []byte(`"stageTimestamp":"2026-11-23 `), 1),
	}
}

func TestEveryDeliveredEventIsYielded(t *testing.T) {
	for _, maxEvents := range []int{1, 100, 400, 2000} {
		t.Run(fmt.Sprint("maxEvents ", maxEvents), func(t *testing.T) {
			t.Parallel()
			hub, falco := local.StartHub(t, 2), start(t, "{}", 0)
			sent := append(local.RealEvents(t), odd()...)
			hub.Publish(t, local.Messages(t, sent...)...)
			forwarder := local.StartForwarder(t, map[string]string{
				"EhubNamespaceConnectionString": hub.ConnectionString,
				"WebSinkURL":                    falco.URL,
				"WebSinkMaxEvents":              fmt.Sprint(maxEvents),
			})
			local.Eventually(t, "everything is delivered", func() bool { return forwarder.Delivered() == len(sent) })
			local.Eventually(t, "the plugin yields every event", func() bool { return len(falco.yielded()) >= len(sent) })
			if duplicates := len(falco.yielded()) - len(sent); duplicates != 0 {
				t.Errorf("%d duplicates", duplicates)
			}
			yielded := map[string][]byte{}
			for _, event := range falco.yielded() {
				yielded[local.Key(t, event)] = event
			}
			for _, event := range sent[:len(sent)-2] {
				if got := yielded[local.Key(t, event)]; !bytes.Equal(got, event) {
					t.Errorf("sent\n%.300s\nyielded\n%.300s", event, got)
				}
			}
		})
	}
}

// An event that the plugin's parser rejects does not affect other events.
func TestANestedEventAffectsNoOther(t *testing.T) {
	hub, falco := local.StartHub(t, 1), start(t, "{}", 0)
	nested := bytes.Replace(odd()[0], []byte(`"requestObject":`), []byte(`"requestObject":`+strings.Repeat("[", 200)), 1)
	nested = append(bytes.TrimSuffix(nested, []byte("}")), strings.Repeat("]", 200)+"}"...)
	ordinary := local.RealEvents(t)[:20]
	hub.Publish(t, local.Message(t, append([][]byte{nested}, ordinary...)...))
	forwarder := local.StartForwarder(t, map[string]string{
		"EhubNamespaceConnectionString": hub.ConnectionString,
		"WebSinkURL":                    falco.URL,
	})
	local.Eventually(t, "everything is delivered", func() bool { return forwarder.Delivered() == 21 })
	local.Eventually(t, "the plugin yields the others", func() bool { return len(falco.yielded()) == len(ordinary) })
}

// A slow rule set: the plugin's channel of 50 bodies is full, and POSTs are blocked. With all 16 concurrent POSTs of the
// settings, most would exceed a timeout of 2 s and be retried.
func TestASlowConsumerGetsFewDuplicates(t *testing.T) {
	for timeout, percent := range map[string]int{"5": 5, "2": 50} {
		t.Run("timeout "+timeout, func(t *testing.T) {
			t.Parallel()
			hub, falco := local.StartHub(t, 4), start(t, "{}", 100)
			var sent [][]byte
			for round := range 5 {
				for _, event := range local.RealEvents(t) {
					if len(event) < 8192 {
						id := fmt.Sprintf(`"auditID":"%d-`, round)
						sent = append(sent, bytes.Replace(event, []byte(`"auditID":"`), []byte(id), 1))
					}
				}
			}
			hub.Publish(t, local.Messages(t, sent...)...)
			forwarder := local.StartForwarder(t, map[string]string{
				"EhubNamespaceConnectionString": hub.ConnectionString,
				"WebSinkURL":                    falco.URL,
				"WebSinkTimeout":                timeout,
				"WebSinkMaxEvents":              "20",
			})
			local.Eventually(t, "everything is delivered", func() bool { return forwarder.Delivered() == len(sent) })
			distinct := func() int {
				found := map[string]bool{}
				for _, event := range falco.yielded() {
					found[local.Key(t, event)] = true
				}
				return len(found)
			}
			local.Eventually(t, "the plugin yields every event", func() bool { return distinct() == len(sent) })
			if duplicates := len(falco.yielded()) - len(sent); duplicates > len(sent)*percent/100 {
				t.Errorf("%d duplicates of %d events", duplicates, len(sent))
			}
		})
	}
}
