package kubelet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strconv"
)

// Certificate is what a kubelet shows as its own, whether or not we would believe it: for who looks why we do not,
// or for how long we shall. Nothing is sent but a handshake, not even a token. It goes to the kubelet itself, by no
// proxy.
func (c *Client) Certificate(ctx context.Context, t Target) (*x509.Certificate, error) {
	cfg := c.tls.Clone()
	cfg.InsecureSkipVerify = true // nothing is told to it and nothing of it is believed
	cfg.VerifyConnection = nil
	if cfg.ServerName == "" {
		cfg.ServerName = t.Host
	}
	p, err := c.shaking.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer p.leave()
	d := tls.Dialer{NetDialer: &c.dialer, Config: cfg}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(t.Host, strconv.Itoa(t.Port)))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if conn, ok := conn.(*tls.Conn); ok {
		if shown := conn.ConnectionState().PeerCertificates; len(shown) > 0 {
			return shown[0], nil
		}
	}
	return nil, errors.New("it shows no certificate")
}
