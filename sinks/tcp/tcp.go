// Package tcp delivers bytes to destinations that take a stream and say nothing, and dials for those
// that do.
//
// A write to a socket says nothing about the other side: the kernel takes the bytes and loses them when
// the destination dies. [Peer.Deliver] therefore opens a connection for each delivery, ends its own half
// after the last byte, and waits until the destination ends the other: a destination that closes a
// connection it has not read to the end resets it, or leaves bytes unacknowledged, so an orderly end says
// that all was read. That costs one round trip for each Write of many rollups.
//
// Not here: what is sent (a package for each destination).
package tcp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/heapstream/heapstream/sinks/sink"
)

// Peer is a destination.
type Peer struct {
	Who     string      // in errors: "Graphite at carbon:2003"
	Address string      // host:port
	TLS     *tls.Config // nil: in the clear
	Confirm bool        // Deliver waits for the destination to end the connection
}

// dialTimeout bounds connecting, beside the context.
const dialTimeout = 10 * time.Second

// Dial connects, TLS handshake included. Its error is passing and says what to do.
func (p *Peer) Dial(ctx context.Context) (net.Conn, error) {
	dialer := net.Dialer{Timeout: dialTimeout}
	var conn net.Conn
	var err error
	if p.TLS != nil {
		conn, err = (&tls.Dialer{NetDialer: &dialer, Config: p.TLS}).DialContext(ctx, "tcp", p.Address)
	} else {
		conn, err = dialer.DialContext(ctx, "tcp", p.Address)
	}
	if err != nil {
		return nil, sink.Reach(p.Who, err)
	}
	return conn, nil
}

// Guard makes every read and write of conn end with ctx. stop must be called before conn is used under
// another context; it leaves conn without a deadline unless ctx has ended.
func Guard(ctx context.Context, conn net.Conn) (stop func()) {
	if at, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(at) // fails where conn is closed: then so does what follows
	}
	unhook := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return func() {
		if unhook() {
			_ = conn.SetDeadline(time.Time{})
		}
	}
}

// Deliver sends all of data over a connection of its own and, if Confirm is set, waits until the
// destination has read it. Its error is passing: then any part of data may have been taken.
func (p *Peer) Deliver(ctx context.Context, data []byte) error {
	conn, err := p.Dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer Guard(ctx, conn)()
	if _, err := conn.Write(data); err != nil {
		return sink.Reach(p.Who, err)
	}
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("deliver to %s: a connection of type %T has no halves", p.Who, conn)
	}
	if err := half.CloseWrite(); err != nil {
		return sink.Reach(p.Who, err)
	}
	if !p.Confirm {
		return nil
	}
	var said [512]byte
	n, err := conn.Read(said[:])
	switch {
	case err == nil:
		return fmt.Errorf("deliver to %s: it answered %q where nothing is to be said", p.Who, sink.Excerpt(said[:n]))
	case errors.Is(err, io.EOF):
		// One that died between two reads ends its half too, and resets the connection a moment later.
		left, err := unacknowledged(conn)
		if err != nil {
			return sink.Reach(p.Who, err)
		}
		if left > 0 {
			return sink.Reach(p.Who, fmt.Errorf("%d bytes were not taken: %w", left, io.ErrUnexpectedEOF))
		}
		return nil
	}
	return sink.Reach(p.Who, fmt.Errorf("it did not end the connection after the last line (if it never does, give confirm=false): %w", err))
}
