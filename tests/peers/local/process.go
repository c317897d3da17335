// Package local runs the programs that tests need: the local Event Hubs server, azurite, the
// forwarder, and sinks. Everything listens on 127.0.0.1 and ends with the test.
package local

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Patience is how long a test waits for a condition; generous, for busy machines.
const Patience = 3 * time.Minute

// Process is a child process; its standard output is read line by line.
type Process struct {
	command *exec.Cmd
	done    chan struct{}
	mutex   sync.Mutex
	lines   []string
}

// Root returns the root of the repository.
func Root() string {
	directory, err := os.Getwd()
	for err == nil {
		if _, missing := os.Stat(filepath.Join(directory, "pyproject.toml")); missing == nil {
			return directory
		}
		if parent := filepath.Dir(directory); parent != directory {
			directory = parent
			continue
		}
		break
	}
	panic("not inside the checkout")
}

// Run starts a program with PATH and this environment only; it is killed when the test ends.
func Run(t *testing.T, environment map[string]string, program string, arguments ...string) *Process {
	t.Helper()
	command := exec.Command(program, arguments...)
	command.Env = []string{"PATH=" + os.Getenv("PATH")}
	for name, value := range environment {
		command.Env = append(command.Env, name+"="+value)
	}
	command.Stderr = os.Stderr
	output, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	process := &Process{command: command, done: make(chan struct{})}
	go process.read(output)
	t.Cleanup(func() {
		_ = command.Process.Kill()
		<-process.done
	})
	return process
}

// Python runs a module of the tests or of the application.
func Python(t *testing.T, environment map[string]string, module string, arguments ...string) *Process {
	t.Helper()
	root := Root()
	merged := map[string]string{"PYTHONPATH": filepath.Join(root, "app") + ":" + filepath.Join(root, "tests")}
	for name, value := range environment {
		merged[name] = value
	}
	python := filepath.Join(root, ".venv", "bin", "python")
	return Run(t, merged, python, append([]string{"-m", module}, arguments...)...)
}

// Lines returns the lines that the process has printed so far.
func (p *Process) Lines() []string {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return append([]string{}, p.lines...)
}

// Stop sends SIGTERM and returns the exit status.
func (p *Process) Stop(t *testing.T) int {
	t.Helper()
	_ = p.command.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(Patience):
		t.Fatalf("does not stop:\n%s", strings.Join(p.Lines(), "\n"))
	}
	return p.command.ProcessState.ExitCode()
}

func (p *Process) read(output io.Reader) {
	defer close(p.done)
	scanner := bufio.NewScanner(output)
	scanner.Buffer(nil, 1<<24)
	for scanner.Scan() {
		p.mutex.Lock()
		p.lines = append(p.lines, scanner.Text())
		p.mutex.Unlock()
	}
	_ = p.command.Wait()
}

// Eventually waits until the condition holds; otherwise the test fails with the description.
func Eventually(t *testing.T, description string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Patience); !condition(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", Patience, description)
		}
	}
}

// FreePort returns a port that nothing listens on.
func FreePort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

func dial(port int) bool {
	connection, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err == nil {
		connection.Close()
	}
	return err == nil
}
