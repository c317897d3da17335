// Package falco checks the forwarder against Falco's k8saudit plugin: the same code that Falco loads
// receives the POSTs of the forwarder, yields the events, and extracts the fields that rules use.
package falco

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/falcosecurity/plugin-sdk-go/pkg/sdk"
	"github.com/falcosecurity/plugin-sdk-go/pkg/sdk/plugins/source"
	"github.com/falcosecurity/plugins/plugins/k8saudit/pkg/k8saudit"

	"peers/local"
)

// plugin is Falco's plugin with its own web server, and a consumer that reads the events it yields.
type plugin struct {
	*k8saudit.Plugin
	URL    string
	mutex  sync.Mutex
	events [][]byte
}

// start opens the plugin's web server; the consumer reads at most eventsPerSecond.
func start(t *testing.T, settings string, eventsPerSecond int) *plugin {
	t.Helper()
	p := &plugin{Plugin: &k8saudit.Plugin{}}
	if err := p.Init(settings); err != nil {
		t.Fatal(err)
	}
	port := local.FreePort(t)
	instance, err := p.OpenWebServer(fmt.Sprintf("127.0.0.1:%d", port), "/k8s-audit", false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.consume(ctx, instance, eventsPerSecond)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		instance.(sdk.Closer).Close()
	})
	p.URL = fmt.Sprintf("http://127.0.0.1:%d/k8s-audit", port)
	return p
}

// yielded returns the events that the plugin has passed to Falco so far.
func (p *plugin) yielded() [][]byte {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return append([][]byte{}, p.events...)
}

func (p *plugin) consume(ctx context.Context, instance source.Instance, eventsPerSecond int) {
	batch := make(buffers, 32)
	if eventsPerSecond > 0 {
		batch = batch[:1]
	}
	for ctx.Err() == nil {
		count, err := instance.NextBatch(p.Plugin, batch)
		if err != nil && err != sdk.ErrTimeout {
			return
		}
		p.mutex.Lock()
		for _, event := range batch[:count] {
			p.events = append(p.events, bytes.Clone(event.Bytes()))
		}
		p.mutex.Unlock()
		if eventsPerSecond > 0 {
			time.Sleep(time.Second / time.Duration(eventsPerSecond))
		}
	}
}

// buffers is Falco's side of a batch: the plugin writes events into it.
type buffers []buffer

type buffer struct{ bytes.Buffer }

func (b buffers) Get(index int) sdk.EventWriter { return &b[index] }
func (b buffers) Len() int                      { return len(b) }
func (b buffers) ArrayPtr() unsafe.Pointer      { return nil }
func (b buffers) Free()                         {}

func (b *buffer) SetTimestamp(uint64) {}
func (b *buffer) Writer() io.Writer {
	b.Reset()
	return &b.Buffer
}

// extract returns a field of an event as Falco gets it: a string, a list of strings, or nil.
func (p *plugin) extract(t *testing.T, number uint64, event []byte, name, argument string) any {
	t.Helper()
	request := &request{name: name, argument: argument}
	for id, field := range p.Fields() {
		if field.Name == name {
			request.id, request.list = uint64(id), field.IsList
		}
	}
	if err := p.Extract(request, &reader{number, event}); err != nil {
		t.Fatalf("%s of %s: %v", name, event, err)
	}
	return request.value
}

type reader struct {
	number uint64
	event  []byte
}

func (r *reader) EventNum() uint64      { return r.number }
func (r *reader) Timestamp() uint64     { return 0 }
func (r *reader) Reader() io.ReadSeeker { return bytes.NewReader(r.event) }

type request struct {
	id             uint64
	name, argument string
	list           bool
	value          any
}

func (r *request) FieldID() uint64                   { return r.id }
func (r *request) FieldType() uint32                 { return sdk.FieldTypeCharBuf }
func (r *request) Field() string                     { return r.name }
func (r *request) ArgKey() string                    { return r.argument }
func (r *request) ArgIndex() uint64                  { return 0 }
func (r *request) ArgPresent() bool                  { return r.argument != "" }
func (r *request) IsList() bool                      { return r.list }
func (r *request) SetValue(value any)                { r.value = value }
func (r *request) SetValueOffset(_, _ uint32)        {}
func (r *request) SetPtr(unsafe.Pointer)             {}
func (r *request) SetOffsetPtrs(_, _ unsafe.Pointer) {}
func (r *request) WantOffset() bool                  { return false }

// pluginWithoutServer extracts fields only.
func pluginWithoutServer(t *testing.T) *k8saudit.Plugin {
	t.Helper()
	p := &k8saudit.Plugin{}
	if err := p.Init(`{"useAsync":false}`); err != nil {
		t.Fatal(err)
	}
	return p
}
