package dashboards

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

var update = flag.Bool("update", false, "renew the dashboards in deploy/observability")

const folder = "../../deploy/observability/grafana/dashboards"

// TestDashboardsAreTheFiles compares the files with what is made here, and reads them strictly.
func TestDashboardsAreTheFiles(t *testing.T) {
	var names []string
	uids := map[string]bool{}
	for _, d := range All() {
		names = append(names, d.File)
		want, err := d.JSON()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(folder, d.File)
		if *update {
			if err := os.WriteFile(path, want, 0o644); err != nil { //nolint:gosec // to be read by others
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what is made here: renew it with -update", path)
		}
		var f File
		strict := json.NewDecoder(bytes.NewReader(got))
		strict.DisallowUnknownFields()
		if err := strict.Decode(&f); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if uids[f.UID] || len(f.UID) > 40 || f.Title == "" || len(f.Panels) == 0 {
			t.Errorf("%s: uid %q (twice, or longer than Grafana's 40 bytes), title %q, %d panels", path, f.UID, f.Title, len(f.Panels))
		}
		uids[f.UID] = true
		taken := map[[2]int]int{}
		for _, p := range f.Panels {
			if p.Title == "" || len(p.Targets) == 0 {
				t.Errorf("%s: panel %d has no title or no query", path, p.ID)
			}
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
					if other := taken[[2]int{x, y}]; other != 0 || x >= 24 {
						t.Fatalf("%s: panels %d and %d overlap at %d,%d", path, other, p.ID, x, y)
					}
					taken[[2]int{x, y}] = p.ID
				}
			}
		}
	}
	files, err := filepath.Glob(filepath.Join(folder, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !slices.Contains(names, filepath.Base(f)) {
			t.Errorf("%s is made by nobody", f)
		}
	}
}
