package e2e

import (
	"bytes"
	"cmp"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// This file keeps the rules of the repository that the compiler does not: who may import whom, and what every
// package has. Each rule stands with its reason; a room that does not exist breaks none.

const (
	modulePrefix = "github.com/heapstream/heapstream/"
	root         = ".." // of the repository, from here
)

// goFile is what a Go file of ours says about itself. Directories are slash-separated, from the root.
type goFile struct {
	dir, name string
	test      bool
	imports   []string
	syntax    *ast.File
}

// sources parses every Go file of the repository.
func sources(t *testing.T) []goFile {
	t.Helper()
	var files []goFile
	fset := token.NewFileSet()
	walk(t, func(name string) {
		if !strings.HasSuffix(name, ".go") || strings.Contains(name, "/testdata/") {
			return
		}
		syntax, err := parser.ParseFile(fset, filepath.Join(root, name), nil, parser.ParseComments|parser.SkipObjectResolution)
		if errors.Is(err, fs.ErrNotExist) {
			return // an editor's file, gone meanwhile
		}
		if err != nil {
			t.Fatal(err)
		}
		f := goFile{dir: path.Dir(name), name: name, test: strings.HasSuffix(name, "_test.go"), syntax: syntax}
		for _, i := range syntax.Imports {
			f.imports = append(f.imports, strings.Trim(i.Path.Value, `"`))
		}
		files = append(files, f)
	})
	if len(files) < 50 {
		t.Fatalf("only %d Go files found: this test looks in the wrong place", len(files))
	}
	return files
}

// walk calls fn with the name of every file that is or could be committed.
func walk(t *testing.T, fn func(name string)) {
	t.Helper()
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if rel == ".git" || rel == "bin" || rel == "data" {
				return filepath.SkipDir
			}
			return nil
		}
		if d.Type().IsRegular() {
			fn(rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// in tells whether dir is one of the rooms, or within one that ends in "/...".
func in(dir string, rooms []string) bool {
	for _, r := range rooms {
		if r == dir {
			return true
		}
		if tree, ok := strings.CutSuffix(r, "/..."); ok && (dir == tree || strings.HasPrefix(dir, tree+"/")) {
			return true
		}
	}
	return false
}

// imports tells whether the import path is of the module or package, which it gives without a version.
func imports(importPath, of string) bool {
	return importPath == of || strings.HasPrefix(importPath, of+"/")
}

func TestOneRoomPerOutsideWorld(t *testing.T) {
	rules := []struct {
		of      string
		rooms   []string
		inTests bool // tests elsewhere may import it too
		because string
	}{
		{"github.com/nats-io/nats.go", []string{"proto/bus/..."}, false,
			"a change of the client, or of the bus, touches one folder; everybody else speaks of streams, positions and deliveries"},
		{"github.com/nats-io/nats-server", []string{"proto/bus/embedded", "proto/bus/bustest"}, false,
			"a server in a service's binary costs each node 10 MB; who wants one asks embedded for it"},
		{"github.com/vmihailenco/msgpack", []string{"proto"}, false,
			"the bytes on the wire are agreed in one place, with golden files"},
		{"github.com/klauspost/compress", []string{"proto", "e2e", "sinks/prometheus"}, true,
			"compression belongs to a codec, ours or that of remote write: nobody else should know how a message is packed"},
		{"github.com/segmentio/kafka-go", []string{"sinks/kafka"}, false,
			"a destination's client lives in the room of the destination"},
		{"github.com/aws/aws-sdk-go-v2", []string{"sinks/elasticsearch"}, false,
			"a destination's client lives in the room of the destination"},
		{"github.com/minio/minio-go", []string{"sinks/s3"}, false,
			"a destination's client lives in the room of the destination"},
		{"github.com/parquet-go/parquet-go", []string{"sinks/s3"}, false,
			"a destination's format lives in the room of the destination"},
		{"golang.org/x/oauth2", []string{"sinks/gcp"}, false,
			"who we are to Google is found out in one place"},
		{"k8s.io/client-go", []string{"scraper/kube", "scraper/node", "scraper/inventory", "scraper/events", "apigw/auth/...", "apigw/resourceapi/...", "apigw/customapi/...", "e2e/..."}, true,
			"it is large, and a node's scraper pays for every part that is linked: only the rooms that speak to an API server know it"},
		{"k8s.io/apiserver", []string{"apigw/resourceapi/...", "apigw/customapi/...", "apigw/auth/..."}, true,
			"being an API server is the gateway's dialect, not its core: the view must stay usable without"},
		{"github.com/spf13/cobra", nil, false,
			"daemon is how our programs take their command line"},
	}
	for _, f := range sources(t) {
		for _, i := range f.imports {
			for _, r := range rules {
				if imports(i, r.of) && !in(f.dir, r.rooms) && !(r.inTests && f.test) {
					t.Errorf("%s imports %s, which only %s may: %s", f.name, i, cmp.Or(strings.Join(r.rooms, ", "), "nobody"), r.because)
				}
			}
		}
	}
}

func TestServicesImportOnlyProto(t *testing.T) {
	services := []string{"scraper", "aggregator", "apigw", "sinks"}
	rules := []struct {
		rooms   []string
		not     []string
		because string
	}{
		{[]string{"proto/..."}, append([]string{"deploy", "e2e"}, services...), "what all agree on depends on nobody"},
		{[]string{"scraper/..."}, []string{"aggregator", "apigw", "sinks", "deploy", "e2e"}, "services meet on the bus, not in the linker"},
		{[]string{"aggregator/..."}, []string{"scraper", "apigw", "sinks", "deploy", "e2e"}, "services meet on the bus, not in the linker"},
		{[]string{"apigw/..."}, []string{"scraper", "aggregator", "sinks", "deploy", "e2e"}, "services meet on the bus, not in the linker"},
		{[]string{"sinks/..."}, []string{"scraper", "aggregator", "apigw", "deploy", "e2e"}, "services meet on the bus, not in the linker"},
		{[]string{"deploy/..."}, []string{"e2e"}, "what runs at a user's does not contain what tests it"},
	}
	for _, f := range sources(t) {
		for _, i := range f.imports {
			ours, ok := strings.CutPrefix(i, modulePrefix)
			if !ok {
				continue
			}
			for _, r := range rules {
				for _, n := range r.not {
					if in(f.dir, r.rooms) && imports(ours, n) {
						t.Errorf("%s imports %s: %s", f.name, i, r.because)
					}
				}
			}
			// Rooms never import their service: cmd → root → rooms → proto.
			for _, s := range services {
				if ours == s && f.dir != s && strings.HasPrefix(f.dir, s+"/") && !strings.HasPrefix(f.dir, s+"/cmd/") {
					t.Errorf("%s imports %s: a room does not know the service it is in, or the two could not be read apart", f.name, i)
				}
			}
			if in(f.dir, []string{"proto/daemon"}) || f.dir == "proto" {
				t.Errorf("%s imports %s: daemon knows neither samples nor the bus, and the nouns know neither it nor the bus", f.name, i)
			}
			if f.dir == "proto/bus" && !f.test && (imports(ours, "proto/bus/embedded") || imports(ours, "proto/bus/bustest")) {
				t.Errorf("%s imports %s: the client side does not carry the server", f.name, i)
			}
			if ours == "proto/bus/bustest" && !f.test && !strings.HasSuffix(f.dir, "test") && !in(f.dir, []string{"e2e/..."}) {
				t.Errorf("%s imports %s: a server for tests stays in tests", f.name, i)
			}
		}
	}
}

// A service may reach the NATS server by way of somebody else's package; what is linked says the truth.
func TestServiceBinariesContainNoServer(t *testing.T) {
	rules := []struct{ command, not, because string }{
		{"scraper/cmd/scraper", "github.com/nats-io/nats-server", "one per node: 10 MB each"},
		{"aggregator/cmd/aggregator", "github.com/nats-io/nats-server", "it is a client of the bus"},
		{"apigw/cmd/apigw", "github.com/nats-io/nats-server", "it is a client of the bus"},
		{"sinks/cmd/sinks", "github.com/nats-io/nats-server", "it is a client of the bus"},
		{"scraper/cmd/scraper", "k8s.io/client-go/kubernetes", "the typed clientset alone is 11 MB resident on every node"},
		{"scraper/cmd/scraper", "k8s.io/apiserver", "it asks an API server and is none"},
		{"aggregator/cmd/aggregator", "k8s.io/client-go", "it knows the cluster by its messages only"},
		{"sinks/cmd/sinks", "k8s.io/client-go", "it knows the cluster by its messages only"},
		{"sinks/cmd/sinks", "google.golang.org/grpc", "13 MB for a few requests of Google's API, which has a REST form"},
		{"sinks/cmd/sinks", "testing", "tests stay in tests"},
		{"aggregator/cmd/aggregator", "testing", "tests stay in tests"},
		{"scraper/cmd/scraper", "testing", "tests stay in tests"},
	}
	linked := map[string][]string{}
	for _, r := range rules {
		dir := filepath.Join(root, filepath.FromSlash(r.command))
		if mains, _ := filepath.Glob(filepath.Join(dir, "*.go")); len(mains) == 0 {
			continue // not built yet
		}
		if linked[r.command] == nil {
			list := exec.Command("go", "list", "-deps", ".")
			list.Dir = dir
			var stderr bytes.Buffer
			list.Stderr = &stderr
			out, err := list.Output()
			if err != nil {
				t.Fatalf("list what %s is built of: %v\n%s", r.command, err, stderr.String())
			}
			linked[r.command] = strings.Fields(string(out))
		}
		for _, p := range linked[r.command] {
			if imports(p, r.not) {
				t.Errorf("%s contains %s: %s", r.command, p, r.because)
				break
			}
		}
	}
}

func TestEveryPackageHasOneDoc(t *testing.T) {
	docs, files := map[string][]string{}, map[string]string{}
	for _, f := range sources(t) {
		if f.test {
			continue
		}
		files[f.dir] = f.name
		if f.syntax.Doc == nil {
			continue
		}
		docs[f.dir] = append(docs[f.dir], f.name)
		text, name := f.syntax.Doc.Text(), f.syntax.Name.Name
		want := "Package " + name + " "
		if name == "main" {
			want = "Command " + path.Base(f.dir) + " "
		}
		if !strings.HasPrefix(text, want) {
			t.Errorf("%s: the package's doc does not begin with %q, so go doc reads badly", f.name, want)
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(files)) {
		switch d := docs[dir]; len(d) {
		case 1:
		case 0:
			t.Errorf("%s: no file says what lives in this package", dir)
		default:
			t.Errorf("%s: %s both say what lives in this package; go doc glues them together", dir, strings.Join(d, ", "))
		}
	}
}

func TestNoPackageIsADrawer(t *testing.T) {
	drawers := []string{"util", "utils", "common", "helper", "helpers", "types", "misc", "shared", "base", "lib"}
	seen := map[string]bool{}
	for _, f := range sources(t) {
		if name := f.syntax.Name.Name; slices.Contains(drawers, name) && !seen[f.dir] {
			seen[f.dir] = true
			t.Errorf("%s is a package %q: a name that says nothing draws in everything", f.dir, name)
		}
	}
}

func TestExportedNamesHaveDocs(t *testing.T) {
	// Methods whose meaning is fixed elsewhere: by fmt, errors, sort, heap, encoding, net/http, prometheus.
	known := []string{"String", "Error", "Unwrap", "Is", "As", "Len", "Less", "Swap", "Push", "Pop",
		"MarshalJSON", "UnmarshalJSON", "MarshalText", "UnmarshalText", "ServeHTTP", "RoundTrip", "Describe", "Collect", "Write", "Read", "Close"}
	for _, f := range sources(t) {
		if f.test || f.syntax.Name.Name == "main" || ast.IsGenerated(f.syntax) {
			continue
		}
		missing := func(kind, name string) {
			t.Errorf("%s: exported %s %s has no doc: a caller must be able to use it without reading it", f.name, kind, name)
		}
		for _, decl := range f.syntax.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if !d.Name.IsExported() || d.Doc != nil {
					continue
				}
				switch receiver := receiverName(d); {
				case receiver == "":
					missing("function", d.Name.Name)
				case ast.IsExported(receiver) && !slices.Contains(known, d.Name.Name):
					missing("method", receiver+"."+d.Name.Name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch s := spec.(type) {
					case *ast.TypeSpec:
						if s.Name.IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
							missing("type", s.Name.Name)
						}
					case *ast.ValueSpec:
						for _, n := range s.Names {
							if n.IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
								missing(d.Tok.String(), n.Name)
							}
						}
					}
				}
			}
		}
	}
}

// receiverName is the type a method belongs to, or "" of a function.
func receiverName(d *ast.FuncDecl) string {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return ""
	}
	for expr := d.Recv.List[0].Type; ; {
		switch e := expr.(type) {
		case *ast.StarExpr:
			expr = e.X
		case *ast.IndexExpr:
			expr = e.X
		case *ast.IndexListExpr:
			expr = e.X
		case *ast.Ident:
			return e.Name
		default:
			return "?"
		}
	}
}

func TestNoFileNamesTheMachineItWasWrittenOn(t *testing.T) {
	// Written in two parts, or this file would name them.
	names := []string{"../" + "shared", "/work/" + "main", "/work/" + "shared", "/tmp/" + "brief"}
	walk(t, func(name string) {
		if strings.HasSuffix(name, ".test") || strings.HasSuffix(name, ".out") || strings.HasSuffix(name, ".prof") {
			return // never committed: .gitignore
		}
		text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			if bytes.Contains(text, []byte(n)) {
				t.Errorf("%s names %s, which is not there in a clone", name, n)
			}
		}
	})
}
