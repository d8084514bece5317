package kube

import (
	"fmt"
	"net/http"
	"net/url"

	"k8s.io/client-go/rest"
)

// HTTP is a client that identifies itself to an API server and trusts it as cfg says, with the server's address: for
// who asks what Client does not know, or wants to see the answer's header. It opens no connection.
func HTTP(cfg *rest.Config) (*http.Client, *url.URL, error) {
	base, _, err := rest.DefaultServerUrlFor(cfg)
	if err != nil {
		return nil, nil, fmt.Errorf("read the address of API server %q: %w", cfg.Host, err)
	}
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, nil, fmt.Errorf("set up the connection to API server %q: %w", cfg.Host, err)
	}
	return client, base, nil
}
