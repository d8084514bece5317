package scraper

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/heapstream/heapstream/proto/daemon"
	"github.com/heapstream/heapstream/scraper/kubelet"
)

// Source is Heapster's --source value taken apart.
type Source struct {
	Key               kubelet.Source
	Server            string // scheme://host[:port] of the API server; "" where not given
	InCluster         bool
	Insecure          bool
	Auth              string // kubeconfig file
	UseServiceAccount bool
	KubeletPort       int    // 0 where not given
	KubeletScheme     string // "http" or "https"; "" where kubeletHttps is not given
	HostIDAnnotation  string
	Warnings          []string // what was accepted and means nothing
}

var sourceOptions = map[string]func(s *Source, value string) error{
	"inClusterConfig":    func(s *Source, v string) error { return parseBool(v, &s.InCluster) },
	"insecure":           func(s *Source, v string) error { return parseBool(v, &s.Insecure) },
	"auth":               func(s *Source, v string) error { s.Auth = v; return nil },
	"useServiceAccount":  func(s *Source, v string) error { return parseBool(v, &s.UseServiceAccount) },
	"host_id_annotation": func(s *Source, v string) error { s.HostIDAnnotation = v; return nil },
	"apiVersion": func(s *Source, v string) error {
		if v != "" && v != "v1" {
			s.Warnings = append(s.Warnings, fmt.Sprintf("option apiVersion=%s has no effect: v1 is used", v))
		}
		return nil
	},
	"kubeletPort": func(s *Source, v string) error {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > 65535 {
			return errors.New("want a port from 1 to 65535")
		}
		s.KubeletPort = n
		return nil
	},
	"kubeletHttps": func(s *Source, v string) error {
		var yes bool
		if err := parseBool(v, &yes); err != nil {
			return err
		}
		s.KubeletScheme = scheme(yes)
		return nil
	},
}

func parseBool(v string, to *bool) (err error) {
	if *to, err = strconv.ParseBool(v); err != nil {
		return errors.New("want true or false")
	}
	return nil
}

// SourceHelp says in a flag's help which keys and options there are.
const SourceHelp = "KEY is kubernetes.summary_api (nodes, pods, containers, volumes: the usual choice), " +
	"kubernetes (every cgroup, page cache, disk I/O, load; no volumes: from /stats/container/ where a kubelet still has it, else from /metrics/cadvisor) or " +
	"kubernetes.resource_api (only cpu and memory, light enough for every few seconds); " +
	"options: inClusterConfig, insecure, auth, useServiceAccount, kubeletPort, kubeletHttps, host_id_annotation, apiVersion"

// ParseSource takes apart KEY[:REST]: REST is expanded from the environment ($NAME, ${NAME}), then
// read as a URL of which scheme, host and query count. Quotes around the value or the URL are
// tolerated. Errors name the option and the way out; unknown options are warned about.
func ParseSource(value string) (Source, error) {
	value = unquote(value)
	key, rest, _ := strings.Cut(value, ":")
	s := Source{Key: kubelet.Source(key), InCluster: true}
	if key == "" {
		return s, fmt.Errorf("missing key in %q: want %s:[url][?options]", value, kubelet.SummarySource)
	}
	if !slices.Contains(kubelet.Sources(), s.Key) {
		return s, fmt.Errorf("source %q is not known: want one of %v", key, kubelet.Sources())
	}
	u, err := url.Parse(unquote(os.ExpandEnv(rest)))
	if err != nil {
		var bad *url.Error
		if errors.As(err, &bad) {
			err = bad.Err // the URL itself may hold a secret
		}
		return s, fmt.Errorf("address behind %s: %w; want scheme://host[:port]?options", key, err)
	}
	if u.User != nil {
		return s, fmt.Errorf("address behind %s holds a user: use a kubeconfig (auth=, --kubeconfig)", key)
	}
	if u.Scheme != "" && u.Host != "" {
		if u.Scheme != "http" && u.Scheme != "https" {
			return s, fmt.Errorf("address behind %s: scheme %q is not http or https", key, u.Scheme)
		}
		s.Server = u.Scheme + "://" + u.Host
	} else if u.Scheme != "" || u.Host != "" || u.Opaque != "" {
		return s, fmt.Errorf("address behind %s: want scheme://host[:port]", key)
	}
	// Heapster's Go took ';' between parameters too.
	query, err := url.ParseQuery(strings.ReplaceAll(u.RawQuery, ";", "&"))
	if err != nil {
		return s, fmt.Errorf("options behind %s: %w", key, err)
	}
	for _, name := range slices.Sorted(maps.Keys(query)) {
		set, known := sourceOptions[name]
		if !known {
			s.Warnings = append(s.Warnings, fmt.Sprintf("unknown option %q means nothing%s", name, suggest(name)))
			continue
		}
		v := query.Get(name)
		if err := set(&s, v); err != nil {
			return s, fmt.Errorf("option %s=%q of %s: %w", name, v, key, err)
		}
	}
	if s.InCluster && s.Auth != "" {
		s.Warnings = append(s.Warnings, "option auth means nothing without inClusterConfig=false")
	}
	return s, nil
}

func unquote(s string) string {
	s = strings.TrimSpace(s)
	for len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		s = s[1 : len(s)-1]
	}
	return s
}

// suggest names the option that was probably meant.
func suggest(name string) string {
	best := daemon.Nearest(name, slices.Sorted(maps.Keys(sourceOptions)))
	if best == "" {
		return ""
	}
	return "; did you mean " + best + "?"
}

// isLoopback reports whether an address is of this machine alone.
func isLoopback(address string) bool {
	if address == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(address, "[]"))
	return err == nil && ip.IsLoopback()
}
