package daemon

import (
	"runtime/debug"
	"testing"
	"testing/fstest"
)

func TestCgroupMemoryLimit(t *testing.T) {
	check := func(what string, files map[string]string, want int64) {
		t.Helper()
		fsys := fstest.MapFS{}
		for name, text := range files {
			fsys[name] = &fstest.MapFile{Data: []byte(text)}
		}
		got, ok := cgroupMemoryLimit(fsys)
		if ok != (want > 0) || ok && got != want {
			t.Errorf("%s: got %d %t, want %d", what, got, ok, want)
		}
	}
	const none1 = "9223372036854771712\n"
	check("no cgroups", nil, 0)
	check("v2 in a container", map[string]string{
		"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "104857600\n",
	}, 104857600)
	check("v2 without a limit", map[string]string{
		"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "max\n",
	}, 0)
	check("v2 limited by the slice around", map[string]string{
		"proc/self/cgroup":                          "0::/kubepods/pod1/c1\n",
		"sys/fs/cgroup/kubepods/pod1/c1/memory.max": "max\n",
		"sys/fs/cgroup/kubepods/pod1/memory.max":    "200\n",
		"sys/fs/cgroup/kubepods/memory.max":         "1000\n",
	}, 200)
	check("v1 in a container sees the host's path", map[string]string{
		"proc/self/cgroup":                           "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/system.slice\n",
		"sys/fs/cgroup/memory/memory.limit_in_bytes": "300\n",
	}, 300)
	check("v1 without a limit", map[string]string{
		"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": none1,
	}, 0)
	check("a path that leaves the mount", map[string]string{
		"proc/self/cgroup": "0::/../../other\n", "sys/fs/cgroup/memory.max": "7\n",
	}, 7)
	check("garbage", map[string]string{
		"proc/self/cgroup": "nothing\n::\n0::/\n", "sys/fs/cgroup/memory.max": "-1",
	}, 0)
}

// The heap grows as the command says, unless the operator does.
func TestHeapGrowth(t *testing.T) {
	t.Setenv("GOGC", "")
	before := debug.SetGCPercent(150)
	defer debug.SetGCPercent(before)
	growth := func() int { return debug.SetGCPercent(150) }
	limitGrowth(0)
	if got := growth(); got != 150 {
		t.Errorf("a command that says nothing makes it %d %%", got)
	}
	limitGrowth(25)
	if got := growth(); got != 25 {
		t.Errorf("a command that says 25 %% makes it %d %%", got)
	}
	t.Setenv("GOGC", "70")
	limitGrowth(25)
	if got := growth(); got != 150 {
		t.Errorf("with GOGC a command makes it %d %%", got)
	}
}
