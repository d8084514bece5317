package scraper

import (
	"github.com/heapstream/heapstream/scraper/kube"
	"github.com/heapstream/heapstream/scraper/kubelet"
	"github.com/heapstream/heapstream/scraper/node"
)

// How a scraper of a configuration reaches what it reads, for tools that look whether it can. The configuration is
// valid (Validate).

// APIServer is which API server is used, and as whom.
func (c *Config) APIServer() (kube.Config, error) {
	s, err := ParseSource(c.Source)
	return c.api(s), err
}

// KubeletClient is how to speak to kubelets; api is who we are to the API server, or nil where there is none.
func (c *Config) KubeletClient(api *kube.Identity) (kubelet.Config, error) { return c.kubelets(api) }

// KubeletOf is where the kubelet of a node is; n is nil where the API server has not told of it.
func (c *Config) KubeletOf(name string, n *node.Node) (kubelet.Target, error) {
	s, err := ParseSource(c.Source)
	return c.target(s, name, n), err
}

// SourceKey is what kubelets are asked for.
func (c *Config) SourceKey() (kubelet.Source, error) {
	s, err := ParseSource(c.Source)
	return s.Key, err
}
