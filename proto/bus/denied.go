package bus

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// denials hears what the server does not permit this user. It says so beside
// the answers, and answers nothing: whoever waits for an answer would wait for
// its timeout, and then try again for ever.
type denials struct {
	mu      sync.Mutex
	told    map[string]bool // families of subjects that were logged on this connection
	noReply error           // our inbox is denied: no request is answered on this connection
	waiting map[*denialWatch]struct{}
}

// denialWatch is somebody who waits for what may be denied.
type denialWatch struct {
	subject string // and what lies below it
	acks    string // ".<stream>.<consumer>.", whose acknowledgements count too; "" for none
	denied  func(error)
}

var deniedSubject = regexp.MustCompile(`(?i)permissions violation for (publish|subscription) to "([^"]+)"`)

// heard tells those whom a refusal concerns; first is false where the like of it
// was heard on this connection.
func (d *denials) heard(err error, inbox string) (subject string, first bool) {
	kind := ""
	if m := deniedSubject.FindStringSubmatch(err.Error()); m != nil {
		kind, subject = strings.ToLower(m[1]), m[2]
	}
	all := kind == "subscription" && strings.HasPrefix(subject, inbox)
	d.mu.Lock()
	if all {
		err = fmt.Errorf("%w (is --bus-inbox-prefix what the user may subscribe to?)", err)
		d.noReply = err
	}
	if d.told == nil {
		d.told = map[string]bool{}
	}
	f := kind + " " + family(subject)
	first = !d.told[f]
	if len(d.told) > 256 {
		clear(d.told)
	}
	d.told[f] = true
	var concerned []*denialWatch
	for w := range d.waiting {
		if all || kind == "publish" && w.covers(subject) {
			concerned = append(concerned, w)
		}
	}
	d.mu.Unlock()
	for _, w := range concerned {
		w.denied(err)
	}
	return subject, first
}

func (w *denialWatch) covers(subject string) bool {
	if rest, ok := strings.CutPrefix(subject, w.subject); ok && (rest == "" || rest[0] == '.') {
		return true
	}
	return w.acks != "" && strings.HasPrefix(subject, "$JS.ACK.") && strings.Contains(subject, w.acks)
}

// family is a subject without what differs between messages of one kind: nodes,
// sequences, names of consumers.
func family(subject string) string {
	tokens := strings.Split(subject, ".")
	keep := 3 // hs.samples.prod, $KV.hs-leases.member
	switch {
	case strings.HasPrefix(subject, "$JS.API."):
		keep = 5 // $JS.API.CONSUMER.CREATE.ROLLUPS_prod
	case strings.HasPrefix(subject, "$JS."):
		keep = 6 // the same of a domain
	case !strings.HasPrefix(subject, "hs.") && !strings.HasPrefix(subject, "$KV."):
		keep = 1 // an inbox
	}
	if strings.HasPrefix(subject, "$JS.ACK.") {
		keep = 4
	}
	return strings.Join(tokens[:min(keep, len(tokens))], ".")
}

// forgive forgets all: on a new connection the user may be permitted more.
func (d *denials) forgive() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.told)
	d.noReply = nil
}

// watch calls w.denied when something w waits for is denied, or replies are;
// once at most, and not after stop has returned but for a call under way.
func (d *denials) watch(w *denialWatch) (stop func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.noReply; err != nil {
		w.denied(err)
		return func() {}
	}
	if d.waiting == nil {
		d.waiting = map[*denialWatch]struct{}{}
	}
	d.waiting[w] = struct{}{}
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.waiting, w)
	}
}

// attempt is a context for one request: it ends after limit, or when the server
// does not permit subject. end takes the request's error and says what it was.
func (d *denials) attempt(ctx context.Context, limit time.Duration, subject string) (_ context.Context, end func(error) error) {
	attempt, cancel := context.WithCancelCause(ctx)
	stop := d.watch(&denialWatch{subject: subject, denied: cancel})
	limited, cancelLimit := context.WithTimeout(attempt, limit)
	return limited, func(err error) error {
		stop()
		if err != nil {
			if why := context.Cause(attempt); errors.Is(why, nats.ErrPermissionViolation) {
				err = why
			}
		}
		cancelLimit()
		cancel(nil)
		return err
	}
}
