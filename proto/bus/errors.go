package bus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// What a caller may branch on. Everything else is wrapped with what was being
// done to which thing.
var (
	// ErrFenced: another owner has taken the epochs; stop writing for this cluster.
	ErrFenced = errors.New("another owner has taken the epoch")
	// ErrTooLarge: the message is larger than the stream or the server takes.
	ErrTooLarge = errors.New("message is too large for the bus")
	// ErrNotPermitted: this bus user may not do that.
	ErrNotPermitted = errors.New("this bus user is not permitted to do that")
	// ErrRefused: the bus refused for good; trying again cannot help.
	ErrRefused = errors.New("refused by the bus")
	// ErrStreamMissing: no such stream; `heapstream bus apply` creates it.
	ErrStreamMissing = errors.New("stream does not exist")
	// ErrStreamRenewed: the stream was made anew and is younger than the position
	// asked for: start again from what it holds.
	ErrStreamRenewed = errors.New("stream was made anew since this position")
	// ErrHeld: somebody else holds the lease.
	ErrHeld = errors.New("lease is held by another")
	// ErrLeaseLost: the lease could not be renewed in time or was taken.
	ErrLeaseLost = errors.New("lease is lost")
	// ErrOtherCluster: the name belongs to a cluster with another UID.
	ErrOtherCluster = errors.New("name is taken by another cluster")
	// ErrClosed: the connection, durable or lanes were closed by this process.
	ErrClosed = errors.New("closed")
	// ErrNotHeld: the delivery does not come from a durable, or is settled already.
	ErrNotHeld = errors.New("delivery is not held")
)

// The server's error codes that we answer to.
const (
	codeNoPeers             = 10005 // servers of a cluster that is starting up have not met yet
	codeClusterNotAvailable = 10008
	codeInsufficient        = 10023
	codeMessageNotFound     = 10037
	codeStorageExceeded     = 10047
	codeTooLarge            = 10054
	codeStreamNotFound      = 10059
	codeWrongLastSeq        = 10071
	codeStoreFailed         = 10077
	codeDuplicateInProcess  = 10158
	codeWrongLastSeqR3      = 10164
	codeTooManyRequests     = 10167
)

// apiCode is the server's error code in err, or 0.
func apiCode(err error) int {
	var e *jetstream.APIError
	if errors.As(err, &e) {
		return int(e.ErrorCode)
	}
	return 0
}

// passing reports whether trying again later may help.
func passing(err error) bool {
	var e *jetstream.APIError
	if errors.As(err, &e) {
		switch int(e.ErrorCode) {
		case codeWrongLastSeqR3, codeDuplicateInProcess, codeTooManyRequests, codeStoreFailed,
			codeInsufficient, codeStorageExceeded, codeClusterNotAvailable, codeNoPeers:
			return true
		}
		return e.Code >= 500 || e.Code == 429 || e.Code == 408
	}
	for _, target := range []error{
		nats.ErrTimeout, nats.ErrNoResponders, nats.ErrReconnectBufExceeded, nats.ErrDisconnected,
		nats.ErrConnectionReconnecting, nats.ErrStaleConnection, nats.ErrNoServers,
		jetstream.ErrNoStreamResponse, jetstream.ErrJetStreamNotEnabled, context.DeadlineExceeded,
		// There never was a connection, so the client knows of no server that takes headers; all with JetStream do.
		nats.ErrHeadersNotSupported,
		// The connection ended under a write, and is made anew.
		io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed,
	} {
		if errors.Is(err, target) {
			return true
		}
	}
	var broken net.Error
	return errors.As(err, &broken)
}

// lasting turns the server's permanent refusals into ours.
func lasting(err error) error {
	switch {
	case errors.Is(err, nats.ErrMaxPayload), apiCode(err) == codeTooLarge:
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	case errors.Is(err, nats.ErrPermissionViolation), errors.Is(err, nats.ErrAuthorization):
		return fmt.Errorf("%w: %w", ErrNotPermitted, err)
	case errors.Is(err, nats.ErrConnectionClosed):
		return fmt.Errorf("%w: %w", ErrClosed, err)
	case apiCode(err) == codeStreamNotFound:
		return fmt.Errorf("%w: %w", ErrStreamMissing, err)
	case apiCode(err) != 0:
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return err
}
