package local

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Forwarder is the forwarder as a child process.
type Forwarder struct {
	*Process
	port int
}

// Entry is a log entry.
type Entry map[string]any

// StartForwarder runs the forwarder with these settings and a new state directory.
func StartForwarder(t *testing.T, settings map[string]string) *Forwarder {
	t.Helper()
	port := FreePort(t)
	environment := map[string]string{
		"StateDirectory":        t.TempDir(),
		"HttpPort":              strconv.Itoa(port),
		"LoadBalancingInterval": "1",
		"OwnershipExpiry":       "5",
	}
	for name, value := range settings {
		environment[name] = value
	}
	return &Forwarder{Python(t, environment, "forwarder"), port}
}

// Logged returns the log entries whose message begins with this text.
func (f *Forwarder) Logged(message string) []Entry {
	var found []Entry
	for _, line := range f.Lines() {
		var entry Entry
		if json.Unmarshal([]byte(line), &entry) == nil && strings.HasPrefix(fmt.Sprint(entry["message"]), message) {
			found = append(found, entry)
		}
	}
	return found
}

// Metric sums the samples of this name whose labels contain the text; 0 if the forwarder does not respond.
func (f *Forwarder) Metric(name, label string) float64 {
	response, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", f.port))
	if err != nil {
		return 0
	}
	defer response.Body.Close()
	sample := regexp.MustCompile(`^` + name + `(?:\{([^}]*)\})? (\S+)`)
	total := 0.0
	for scanner := bufio.NewScanner(response.Body); scanner.Scan(); {
		if found := sample.FindStringSubmatch(scanner.Text()); found != nil && strings.Contains(found[1], label) {
			value, _ := strconv.ParseFloat(found[2], 64)
			total += value
		}
	}
	return total
}

// Delivered returns how many events the forwarder counts as delivered.
func (f *Forwarder) Delivered() int {
	return int(f.Metric("aks_audit_events_total", `outcome="delivered"`))
}

// Sink is a webhook that accepts and records everything.
type Sink struct {
	URL    string
	mutex  sync.Mutex
	bodies [][]byte
	heads  []http.Header
}

// StartSink starts a sink that accepts everything.
func StartSink(t *testing.T) *Sink {
	t.Helper()
	sink := &Sink{}
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, request *http.Request) {
		body, _ := io.ReadAll(request.Body)
		sink.mutex.Lock()
		defer sink.mutex.Unlock()
		sink.bodies = append(sink.bodies, body)
		sink.heads = append(sink.heads, request.Header)
	}))
	t.Cleanup(server.Close)
	sink.URL = server.URL
	return sink
}

// Posts returns the bodies and headers received so far.
func (s *Sink) Posts() ([][]byte, []http.Header) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return append([][]byte{}, s.bodies...), append([]http.Header{}, s.heads...)
}

// Events returns the events of all posts.
func (s *Sink) Events(t *testing.T) [][]byte {
	t.Helper()
	var events [][]byte
	bodies, _ := s.Posts()
	for _, body := range bodies {
		events = append(events, Items(t, body)...)
	}
	return events
}

// Items returns the events of a request's body: an EventList or a single Event.
func Items(t *testing.T, body []byte) [][]byte {
	t.Helper()
	var list struct {
		Kind  string            `json:"kind"`
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		t.Fatal(err)
	}
	if list.Kind == "Event" {
		return [][]byte{body}
	}
	var events [][]byte
	for _, item := range list.Items {
		events = append(events, item)
	}
	return events
}

// Key names an event: its auditID and stage.
func Key(t *testing.T, event []byte) string {
	t.Helper()
	var named struct{ AuditID, Stage string }
	if err := json.Unmarshal(event, &named); err != nil {
		t.Fatal(err)
	}
	return named.AuditID + "/" + named.Stage
}
