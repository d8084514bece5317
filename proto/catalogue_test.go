package proto

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

func TestCatalogueIdsAndNamesAreUnique(t *testing.T) {
	ids, names := map[MetricID]string{}, map[string]bool{}
	for _, m := range Metrics() {
		if m.ID == 0 || m.ID > maxMetricID {
			t.Errorf("%s has id %d", m.Name, m.ID)
		}
		if other, taken := ids[m.ID]; taken {
			t.Errorf("id %d belongs to %s and %s", m.ID, other, m.Name)
		}
		if names[m.Name] {
			t.Errorf("%s is there twice", m.Name)
		}
		ids[m.ID], names[m.Name] = m.Name, true
		if MetricByID(m.ID).Name != m.Name || MetricByName(m.Name).ID != m.ID {
			t.Errorf("%s is not found by id or name", m.Name)
		}
		if m.Help == "" || !strings.HasSuffix(m.Help, ".") {
			t.Errorf("%s has no sentence of help", m.Name)
		}
	}
}

func TestCatalogueFormulasAreWhole(t *testing.T) {
	for _, m := range Metrics() {
		switch m.Formula {
		case FormulaMilli, FormulaNano, FormulaPerSecond, FormulaStalled:
			of := MetricByID(m.Of)
			if of == nil || of.Shape != Counter || of.Group != m.Group || of.Device != m.Device || of.Levels&m.Levels == 0 {
				t.Errorf("%s is the rate of %+v", m.Name, of)
			}
		case FormulaRatio:
			if MetricByID(m.Of) == nil || MetricByID(m.By) == nil {
				t.Errorf("%s divides what is not there", m.Name)
			}
		case FormulaNone, FormulaUptime:
			if m.Of != 0 || m.By != 0 {
				t.Errorf("%s has operands and no formula", m.Name)
			}
		}
		if m.Shape == Counter && m.Formula == FormulaNone && m.Group == GroupNone {
			t.Errorf("counter %s has no sample time", m.Name)
		}
		if (m.Group == GroupDevice) != (m.Device != 0) {
			t.Errorf("%s: device %d in group %d", m.Name, m.Device, m.Group)
		}
	}
}

// The list is Heapster's own (spec: metrics §2 to §6), in its order; ids are those that messages
// already carry. A line may be added, never changed.
func TestCatalogueKeepsItsIds(t *testing.T) {
	var got strings.Builder
	for _, m := range Metrics() {
		ours := ""
		if m.Ours {
			ours = " ours"
		}
		float := "int64"
		if m.Float {
			float = "double"
		}
		got.WriteString(strings.TrimRight(strings.Join([]string{strconv.Itoa(int(m.ID)), m.Name, m.Shape.String(), float, string(m.Unit)}, " "), " ") + ours + "\n")
	}
	golden(t, "testdata/catalogue.golden", []byte(got.String()))
}

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path) //nolint:gosec // a test's own file
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s differs (renew with -update only if the change is compatible)\ngot %d bytes, want %d", path, len(got), len(want))
		if len(got) < 1<<16 {
			t.Logf("got:\n%s", got)
		}
	}
}
