package daemon

import "runtime/debug"

// Set by the linker: -X github.com/heapstream/heapstream/proto/daemon.version=v1.2.3, and commit.
var version, commit string

// Version returns the version and the commit this program was built from. What the linker was not told is
// taken from the build information of the Go tool; what that does not know either is "unknown".
func Version() (string, string) {
	v, c := version, commit
	if info, ok := debug.ReadBuildInfo(); ok {
		if v == "" && info.Main.Version != "(devel)" {
			v = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && c == "" {
				c = s.Value
			}
		}
	}
	return orUnknown(v), orUnknown(c)
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}
