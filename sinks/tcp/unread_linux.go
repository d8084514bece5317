package tcp

import (
	"crypto/tls"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// unacknowledged is how many bytes, the end of the stream included, the other side's kernel has not
// acknowledged.
func unacknowledged(conn net.Conn) (n int, err error) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	c, ok := conn.(*net.TCPConn)
	if !ok {
		return 0, fmt.Errorf("a connection of type %T is not of TCP", conn)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	if e := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); e != nil {
		return 0, e
	}
	return n, err
}
