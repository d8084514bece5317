package daemon

import (
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
)

// memoryShare of the cgroup's limit is what Go may use. The rest is for what the runtime does not count:
// the binary's pages, mapped files, the kernel's buffers. Go itself derives GOMAXPROCS from the CPU limit.
const memoryShare = 0.9

// limitMemory tells the runtime to collect harder when it comes near the memory limit of our cgroup. An
// operator who sets GOMEMLIMIT has decided.
func limitMemory(log *slog.Logger) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	if limit, ok := cgroupMemoryLimit(os.DirFS("/")); ok {
		soft := int64(float64(limit) * memoryShare)
		debug.SetMemoryLimit(soft)
		log.Debug("heap is kept below the limit of the cgroup", "limit", limit, "soft", soft)
	}
}

// limitGrowth sets [Command.HeapGrowth] unless an operator has set GOGC.
func limitGrowth(percent int) {
	if percent > 0 && os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}

// cgroupMemoryLimit returns the least memory limit in bytes among this process's cgroup and those around
// it, of cgroup v2 and v1; false if there is none. fsys is the root of the file system.
func cgroupMemoryLimit(fsys fs.FS) (int64, bool) {
	own, err := fs.ReadFile(fsys, "proc/self/cgroup")
	if err != nil {
		return 0, false // not Linux, or no cgroups
	}
	least := int64(math.MaxInt64)
	for line := range strings.Lines(string(own)) {
		// hierarchy:controllers:path, where v2 has neither number nor controllers: "0::/kubepods/pod1/c1"
		_, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		controllers, dir, ok := strings.Cut(rest, ":")
		switch {
		case !ok:
		case controllers == "":
			least = min(least, leastLimit(fsys, "sys/fs/cgroup", dir, "memory.max"))
		case hasController(controllers, "memory"):
			least = min(least, leastLimit(fsys, "sys/fs/cgroup/memory", dir, "memory.limit_in_bytes"))
		}
	}
	return least, least < math.MaxInt64
}

func hasController(list, name string) bool {
	for c := range strings.SplitSeq(list, ",") {
		if c == name {
			return true
		}
	}
	return false
}

// leastLimit reads file in dir and every directory above it up to mount. In a container the path may be
// the host's, of which nothing is mounted but the innermost directory, as mount itself: what does not
// exist is passed over.
func leastLimit(fsys fs.FS, mount, dir, file string) int64 {
	least := int64(math.MaxInt64)
	for dir = path.Clean("/" + dir); ; dir = path.Dir(dir) {
		if text, err := fs.ReadFile(fsys, path.Join(mount, dir, file)); err == nil {
			// "max" in v2 is no number; in v1 no limit is the largest number of whole pages
			if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && n > 0 && n < math.MaxInt64>>1 {
				least = min(least, n)
			}
		}
		if dir == "/" {
			return least
		}
	}
}
