//go:build linux

package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto/bus"
)

// diskBytes is a disk that holds what a stand writes in some minutes, and nothing beside it.
const diskBytes = "48m"

// smallDisk is a file system of its own for a server's store.
func smallDisk(t *testing.T, _ int) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+diskBytes); err != nil {
		t.Skipf("SKIP: a file system of %s cannot be mounted, which takes root: %v", diskBytes, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "store")
}

// fill leaves no byte on a server's disk, and returns what gives the space back.
func (s *stand) fill(server *process) (free func()) {
	s.t.Helper()
	conf, err := os.ReadFile(server.args[1])
	if err != nil {
		s.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(conf), `store_dir: "`)
	store, _, _ := strings.Cut(rest, `"`)
	name := filepath.Join(filepath.Dir(store), "filler")
	f, err := os.Create(name)
	if err != nil {
		s.t.Fatal(err)
	}
	full := make(chan struct{})
	stopped := make(chan struct{})
	go func() { // also what is freed by the server meanwhile
		defer close(stopped)
		zeros := make([]byte, 4<<10)
		for {
			select {
			case <-full:
				return
			default:
			}
			if _, err := f.Write(zeros); err != nil {
				if !errors.Is(err, syscall.ENOSPC) {
					s.t.Error(err)
					return
				}
				time.Sleep(10 * time.Millisecond) // as somebody else who writes to that disk
			}
		}
	}()
	return func() {
		close(full)
		<-stopped
		if err := errors.Join(f.Close(), os.Remove(name)); err != nil {
			s.t.Error(err)
		}
	}
}

// supervised starts a server again that says that it is not healthy, as whoever runs it does (a liveness probe, say): one
// whose disk was full goes on without JetStream until then.
func (s *stand) supervised(server *process) {
	s.t.Helper()
	if answer, err := server.get("/healthz"); err != nil {
		s.t.Logf("%s is not healthy and is started again: %v %s", server.name, err, answer)
		server.stop()
		server.start()
	}
}

func oneDiskFull(_ *testing.T, s *stand) {
	s.allBehind()
	p := s.leader(bus.RollupsStream(standCluster))
	free := s.fill(p)
	p.says("no space left on device")
	s.goesOn()
	free()
	s.supervised(p)
	s.settled()
	s.goesOn()
}

func disksFull(_ *testing.T, s *stand) {
	s.allBehind()
	var free []func()
	for _, p := range s.servers {
		free = append(free, s.fill(p))
	}
	s.scrapers[0].says("publishing is held up")
	s.scraped(2)
	for _, f := range free {
		f()
	}
	for _, p := range s.servers {
		s.supervised(p)
	}
	s.settled()
	s.goesOn()
}
