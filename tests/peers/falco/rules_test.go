package falco

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"peers/local"
)

// Alerts per rule that the preset `quiet` suppresses on these events.
// chart/docs/audit-policy.md names the rules. The preset `security` suppresses none.
var suppressedByQuiet = map[string]int{"Disallowed K8s User": 2, "Anonymous Request Allowed": 2}

type rule struct {
	name      string
	condition condition
}

func TestPresetsAndPublishedRules(t *testing.T) {
	rules, falco := published(t), &plugin{Plugin: pluginWithoutServer(t)}
	before := alerts(t, falco, rules, eventsOfAllUsers(t))
	if len(before) < 25 {
		t.Fatalf("only %d rules raise an alert without a policy: %v", len(before), before)
	}
	for preset, suppressed := range map[string]map[string]int{"security": {}, "quiet": suppressedByQuiet} {
		t.Run(preset, func(t *testing.T) {
			after := alerts(t, falco, rules, filtered(t, preset))
			for name, count := range before {
				if count-after[name] != suppressed[name] {
					t.Errorf("%s: %d alerts without a policy, %d with %s; expected %d fewer",
						name, count, after[name], preset, suppressed[name])
				}
			}
		})
	}
}

// eventsOfAllUsers returns the real events, also as events of an unknown user, of an anonymous one and of a service
// account: otherwise the rules on users would not match.
func eventsOfAllUsers(t *testing.T) [][]byte {
	t.Helper()
	events := local.RealEvents(t)
	for _, user := range []string{"alice@example.com", "system:anonymous", "system:serviceaccount:default:default"} {
		for _, event := range local.RealEvents(t) {
			for _, known := range []string{"admin", "system:apiserver"} {
				renamed := bytes.Replace(event, []byte(`"username":"`+known+`"`), []byte(`"username":"`+user+`"`), 1)
				if !bytes.Equal(renamed, event) {
					events = append(events, renamed)
				}
			}
		}
	}
	return events
}

// filtered returns the events of eventsOfAllUsers that the forwarder posts with a preset.
func filtered(t *testing.T, preset string) [][]byte {
	t.Helper()
	hub, sink := local.StartHub(t, 1), local.StartSink(t)
	events := eventsOfAllUsers(t)
	hub.Publish(t, local.Messages(t, events...)...)
	forwarder := local.StartForwarder(t, map[string]string{
		"EhubNamespaceConnectionString": hub.ConnectionString,
		"WebSinkURL":                    sink.URL,
		"AuditPolicyFile":               preset,
	})
	local.Eventually(t, "every event is delivered or filtered", func() bool {
		return forwarder.Delivered()+int(forwarder.Metric("aks_audit_events_total", `outcome="filtered"`)) == len(events)
	})
	return sink.Events(t)
}

func alerts(t *testing.T, falco *plugin, rules []rule, events [][]byte) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for number, event := range events {
		var decoded any
		if err := json.Unmarshal(event, &decoded); err != nil {
			t.Fatal(err)
		}
		field := func(name string) []string {
			if name == "jevt.rawtime" {
				return []string{"1"}
			}
			if pointer, found := strings.CutPrefix(name, "jevt.value["); found {
				return valueAt(decoded, strings.TrimSuffix(pointer, "]"))
			}
			return values(falco.extract(t, uint64(number)+1, event, name, ""))
		}
		for _, rule := range rules {
			if rule.condition(field) {
				counts[rule.name]++
			}
		}
	}
	return counts
}

// published returns the rules of the plugin's module; each is evaluated separately.
func published(t *testing.T) []rule {
	t.Helper()
	directory, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/falcosecurity/plugins/plugins/k8saudit").Output()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(directory)), "rules", "k8s_audit_rules.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var entries []struct {
		Rule, Macro, List, Condition string
		Items                        []any
	}
	if err := yaml.Unmarshal(text, &entries); err != nil {
		t.Fatal(err)
	}
	read := parser{macros: map[string]string{}, lists: map[string][]string{}}
	for _, entry := range entries {
		if entry.Macro != "" {
			read.macros[entry.Macro] = entry.Condition
		}
		for _, item := range entry.Items {
			read.lists[entry.List] = append(read.lists[entry.List], fmt.Sprint(item))
		}
		if entry.List != "" && entry.Items == nil || len(entry.Items) == 0 && entry.List != "" {
			read.lists[entry.List] = []string{}
		}
	}
	var rules []rule
	for _, entry := range entries {
		if entry.Rule == "" || entry.Rule == "All K8s Audit Events" {
			continue
		}
		parsed, err := read.parse(entry.Condition)
		if err != nil {
			t.Fatalf("%s: %v", entry.Rule, err)
		}
		rules = append(rules, rule{entry.Rule, parsed})
	}
	return rules
}

func values(extracted any) []string {
	switch value := extracted.(type) {
	case string:
		return []string{value}
	case []string:
		return value
	}
	return nil
}

// valueAt returns the value at a JSON pointer of jevt.value.
func valueAt(value any, pointer string) []string {
	for _, name := range strings.Split(strings.Trim(pointer, "/"), "/") {
		object, _ := value.(map[string]any)
		if value = object[name]; value == nil {
			return nil
		}
	}
	return []string{fmt.Sprint(value)}
}

// From events that the forwarder completed, the plugin extracts the same fields as from the original events.
func TestFieldsAreThoseOfTheEvent(t *testing.T) {
	fields := func(event []byte) map[string]string {
		var audit struct {
			AuditID, Stage, Verb, RequestURI string
			User                             struct{ Username string }
			ObjectRef                        struct{ Resource, Subresource, Namespace, Name string }
		}
		if err := json.Unmarshal(event, &audit); err != nil {
			t.Fatal(err)
		}
		return map[string]string{
			"ka.auditid": audit.AuditID, "ka.stage": audit.Stage, "ka.verb": audit.Verb, "ka.uri": audit.RequestURI,
			"ka.user.name": audit.User.Username, "ka.target.resource": audit.ObjectRef.Resource,
			"ka.target.subresource": audit.ObjectRef.Subresource, "ka.target.namespace": audit.ObjectRef.Namespace,
		}
	}
	hub, sink := local.StartHub(t, 1), local.StartSink(t)
	whole, cut := map[string][]byte{}, [][]byte{}
	for _, event := range local.RealEvents(t) {
		if len(event) > 1500 {
			whole[local.Key(t, event)], cut = event, append(cut, event[:len(event)*3/4])
		}
	}
	hub.Publish(t, local.Messages(t, cut...)...)
	forwarder := local.StartForwarder(t, map[string]string{
		"EhubNamespaceConnectionString": hub.ConnectionString,
		"WebSinkURL":                    sink.URL,
	})
	local.Eventually(t, "everything is delivered", func() bool { return forwarder.Delivered() == len(cut) })
	falco := &plugin{Plugin: pluginWithoutServer(t)}
	for number, event := range sink.Events(t) {
		for name, want := range fields(whole[local.Key(t, event)]) {
			got := values(falco.extract(t, uint64(number)+1, event, name, ""))
			if want != "" && !slices.Equal(got, []string{want}) {
				t.Errorf("%s: %v, not %q in %s", name, got, want, event)
			}
		}
	}
}
