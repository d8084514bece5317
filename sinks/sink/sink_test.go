package sink

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func parse(t *testing.T, value string) Target {
	t.Helper()
	target, err := parseTarget(value, func(name string) string {
		return map[string]string{"PASS": "s3cr3t", "HOST": "db"}[name]
	})
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func TestTargetGrammar(t *testing.T) {
	check := func(value, key, canonical, shown string) {
		t.Helper()
		got := parse(t, value)
		if got.Key != key || got.Canonical() != canonical || got.String() != shown {
			t.Errorf("%s: key %q, canonical %q, shown %q; want %q, %q, %q", value, got.Key, got.Canonical(), got.String(), key, canonical, shown)
		}
	}
	check("log", "log", "log", "log")
	check("gcm:", "gcm", "gcm", "gcm")
	check("influxdb:http://h:8086?db=k", "influxdb", "influxdb:http://h:8086?db=k", "influxdb:http://h:8086?db=k")
	// Only the first colon separates; what is after it is expanded from the environment.
	check("influxdb:http://$HOST:1?pw=${PASS}&a=$NONE", "influxdb", "influxdb:http://db:1?pw=s3cr3t&a=", "influxdb:http://db:1?pw=xxxxx&a=")
	// Quotes are not syntax, but left over from YAML.
	check(`"kafka:?brokers=h:1"`, "kafka", "kafka:?brokers=h:1", "kafka:?brokers=h%3A1")
	check(`kafka:'?brokers=h:1'`, "kafka", "kafka:?brokers=h:1", "kafka:?brokers=h%3A1")
	check("kubernetes:''", "kubernetes", "kubernetes", "kubernetes")
	check("wavefront:proxy:2878", "wavefront", "wavefront:proxy:2878", "wavefront:proxy:2878")
	check("influxdb:http://u:p@h?esUserSecret=x&token=y&pw_file=/z", "influxdb", "influxdb:http://u:p@h?esUserSecret=x&token=y&pw_file=/z",
		"influxdb:http://u:xxxxx@h?esUserSecret=xxxxx&token=xxxxx&pw_file=%2Fz")
}

func TestTargetErrorsSayTheWayOutAndNoSecret(t *testing.T) {
	check := func(value, want string) {
		t.Helper()
		_, err := parseTarget(value, os.Getenv)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%s: %v, want %q", value, err, want)
		}
	}
	check(":http://h?pw=s3cr3t", "missing uri key in ':http://h…'")
	check("", "missing uri key")
	check("influxdb:10.0.0.1:8086?pw=s3cr3t", "needs a scheme: http://10.0.0.1:8086")
	check("influxdb:http://h:%zz?pw=s3cr3t", "not a URL")
	check("influxdb:http://h?pw=s3cr3t%zz", "option \"pw\" has a bad percent escape")
	check("influxdb:"+strings.Repeat("x", maxTarget), "at most")
}

func FuzzParseTarget(f *testing.F) {
	f.Add("influxdb:http://h:1?pw=secret&db=k;x=$Y")
	f.Add(`"a:'b'"`)
	f.Fuzz(func(t *testing.T, value string) {
		target, err := parseTarget(value, func(string) string { return "" })
		if err != nil {
			return
		}
		if target.Key == "" {
			t.Fatal("no key")
		}
		_, _, _ = target.String(), target.Canonical(), target.Host("1")
		_ = target.Options().Done()
	})
}

func TestNamesTellDestinationsApartAndKeepNoSecret(t *testing.T) {
	k := Kind{Key: "influxdb", Identity: []string{"db"}}
	name := func(value string) string { return parse(t, value).Name(k) }
	same := name("influxdb:http://h:8086?db=a&pw=1")
	for _, other := range []string{"influxdb:https://h:8086?pw=2&db=a&withfields=true", "influxdb:h:8086?db=a"} {
		if name(other) != same {
			t.Errorf("%s is %s, want %s", other, name(other), same)
		}
	}
	for _, other := range []string{"influxdb:http://h:8086?db=b&pw=1", "influxdb:http://g:8086?db=a"} {
		if name(other) == same {
			t.Errorf("%s is %s too", other, same)
		}
	}
	if got := name("influxdb:http://h?name=mine"); got != "mine" {
		t.Errorf("named %q, want mine", got)
	}
	if got := parse(t, "log").Name(Kind{Key: "log"}); got != "log" {
		t.Errorf("named %q, want log", got)
	}
}

func TestOptionsRefuseWhatTheyDoNotKnow(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "pw")
	if err := os.WriteFile(file, []byte("from file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := parse(t, "influxdb:?db=k&n=3&on=T&wait=5&word=b&pw_file="+file+"&old=x&b=1&b=2;c=3&db=second").Options()
	if o.String("db", "") != "k" || o.Int("n", 1, 1) != 3 || !o.Bool("on", false) || o.Duration("wait", 0) != 5*time.Second || o.Choice("word", "a", "b") != "b" {
		t.Error("an option is misread")
	}
	if got := o.Secret("pw", ""); got != "from file" {
		t.Errorf("secret %q", got)
	}
	if got := fmt.Sprint(o.All("b"), o.String("c", "")); got != "[1 2]3" {
		t.Errorf("repeated %s", got)
	}
	o.Meaningless("old", "nobody needs it")
	if err := o.Done(); err != nil {
		t.Fatal(err)
	}
	if w := o.warnings; len(w) != 1 || !strings.Contains(w[0], "`old` means nothing any more: nobody needs it") {
		t.Fatalf("warnings %v", w)
	}
	o = parse(t, "influxdb:?dbb=k&zzzzzzzz=1&n=x&on=maybe&pw=a&pw_file=/none&wait=-1s").Options()
	o.String("db", "")
	o.Int("n", 0, 1)
	o.Bool("on", false)
	o.Secret("pw", "")
	o.Duration("wait", 0)
	err := o.Done()
	for _, want := range []string{
		"option `dbb` is unknown: did you mean `db`?", "option `zzzzzzzz` is unknown; known are db,", "`n` flag - \"x\" is not a whole number",
		"`on` flag - \"maybe\" is neither true nor false", "`pw` and `pw_file` are both given", "`wait` flag",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestSecretsAreHidden(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("from file\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := parse(t, "x:http://u:in-address@h?pw=p%26w-1&user=root&db=root&esUserSecret=abc&token_file="+file).Secrets()
	for said, want := range map[string]string{
		"user root, p&w-1 or p%26w-1 is wrong":           "user root, xxxxx or xxxxx is wrong",
		"in-address and from+file and from file and abc": "xxxxx and xxxxx and xxxxx and abc",
		"nothing": "nothing",
	} {
		if got := s.Hide(said); got != want {
			t.Errorf("%q becomes %q, want %q", said, got, want)
		}
	}
	if got := parse(t, "x:u:in-address@h:1").Secrets().Hide("in-address"); got != "xxxxx" {
		t.Errorf("a password in an address without // becomes %q", got)
	}
	// Files that hold no secret are refused, by the file's name.
	empty, large := filepath.Join(t.TempDir(), "empty"), filepath.Join(t.TempDir(), "large")
	for file, size := range map[string]int{empty: 0, large: maxSecret + 1} {
		if err := os.WriteFile(file, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for file, want := range map[string]string{empty: "is empty", large: "is larger than", "/none": "no such file"} {
		o := parse(t, "x:?pw_file="+file).Options()
		o.Secret("pw", "")
		if err := o.Done(); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "`pw_file`") {
			t.Errorf("%s: %v, want %q", file, err, want)
		}
	}
}

// FuzzMatch holds globs against regular expressions that mean the same.
func FuzzMatch(f *testing.F) {
	f.Add("cpu/*", "cpu/usage")
	f.Add("*a*b?c*", "xxaxxbbyczz")
	f.Add("", "")
	f.Fuzz(func(t *testing.T, glob, s string) {
		if len(glob) > 64 || len(s) > 256 || !utf8.ValidString(glob) || !utf8.ValidString(s) {
			return
		}
		for _, text := range []string{glob, s} { // a ? is a byte, which is a character where texts are ASCII
			for _, c := range []byte(text) {
				if c >= utf8.RuneSelf {
					return
				}
			}
		}
		want := glob == s
		if glob != "" && s != "" {
			expr := strings.NewReplacer(`\*`, `.*`, `\?`, `.`).Replace(regexp.QuoteMeta(glob))
			want = regexp.MustCompile(`(?s)^` + expr + `$`).MatchString(s)
		}
		if got := match(glob, s); got != want {
			t.Fatalf("match(%q, %q) is %t", glob, s, got)
		}
	})
}

func TestSince(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	check := func(value string, isNew bool, from time.Time) {
		t.Helper()
		s, err := parse(t, "log:?since="+value).Since()
		if err != nil {
			t.Fatal(err)
		}
		if gotNew, got := s.From(now); gotNew != isNew || !got.Equal(from) {
			t.Errorf("%s: %t, %s", value, gotNew, got)
		}
	}
	check("", false, time.Time{})
	check("now", true, time.Time{})
	check("2h", false, now.Add(-2*time.Hour))
	check("2026-11-20T00:00:00Z", false, now.Add(-36*time.Hour))
	if _, err := parse(t, "log:?since=yesterday").Since(); err == nil {
		t.Error("yesterday is accepted")
	}
}

func TestErrorsSayWhatTheyAre(t *testing.T) {
	cause := errors.New("cause")
	if err := fmt.Errorf("x: %w", Permanent(cause)); !IsPermanent(err) || !errors.Is(err, cause) {
		t.Error("permanent is lost")
	}
	if err := fmt.Errorf("x: %w", RetryAfter(time.Minute, cause)); RetryAfterOf(err) != time.Minute || IsPermanent(err) {
		t.Error("the wait is lost")
	}
	if Permanent(nil) != nil || RetryAfter(1, nil) != nil {
		t.Error("nil becomes an error")
	}
	p := &Partial{Refused: []Refused{{Samples: 2, Reason: "a"}, {Samples: 1, Reason: "b"}}, Late: 3, Err: Permanent(cause)}
	if got := p.Error(); got != "3 samples refused: a; 3 samples older than the destination keeps; cause" || !IsPermanent(p) {
		t.Error(got)
	}
}

func TestRetryAfterHeader(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for v, want := range map[string]time.Duration{"": 0, "7": 7 * time.Second, "x": 0, "-1": 0, "99999": time.Hour, "Sat, 21 Nov 2026 12:00:30 GMT": 30 * time.Second} {
		if got := RetryAfterHeader(http.Header{"Retry-After": {v}}, now); got != want {
			t.Errorf("%q: %s, want %s", v, got, want)
		}
	}
}

func TestTargetWithoutSomeValues(t *testing.T) {
	rest, taken := parse(t, "x:?filter=name(a)&filter=metric:b&c=d").Without("filter", func(v string) bool { return strings.HasPrefix(v, "name(") })
	if fmt.Sprint(taken) != "[name(a)]" || fmt.Sprint(rest.Options().All("filter")) != "[metric:b]" || rest.Options().String("c", "") != "d" {
		t.Fatalf("%v is left, %v is taken", rest, taken)
	}
}
