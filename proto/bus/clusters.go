package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"time"
)

// ClusterInfo is what hs-clusters knows of a cluster.
type ClusterInfo struct {
	Cluster    string        `json:"-"` // its name; the key
	UID        string        `json:"uid"`
	Resolution time.Duration `json:"resolution"` // of its grid, ns on the wire
	Created    time.Time     `json:"created"`
}

// Register enters a cluster, or corrects its resolution. Under a name that has
// another UID it is ErrOtherCluster: two clusters must not write into one stream.
// Created is kept from the first time. It waits for the bus until ctx ends.
func (c *Conn) Register(ctx context.Context, cluster string, info ClusterInfo) error {
	if err := CheckCluster(cluster); err != nil {
		return err
	}
	key := EncodeToken(cluster)
	for n := 0; ; n++ {
		now, err := c.read(ctx, ClustersBucket, key)
		if err != nil {
			return fmt.Errorf("register cluster %q: %w", cluster, err)
		}
		want := info
		if !now.gone {
			known, err := clusterOf(now)
			if err != nil {
				return fmt.Errorf("register cluster %q: %w", cluster, err)
			}
			if known.UID != info.UID {
				return fmt.Errorf("register cluster %q: %w: its UID is %s, ours %s; choose another name, or remove the old one with `heapstream clusters rm %s`",
					cluster, ErrOtherCluster, known.UID, info.UID, cluster)
			}
			if known.Resolution == info.Resolution {
				return nil
			}
			want.Created = known.Created
		}
		value, err := json.Marshal(want)
		if err != nil {
			return err
		}
		if _, err = c.write(ctx, ClustersBucket, key, value, now.seq); err == nil {
			return nil
		}
		if !outdated(err) && !passing(err) {
			return fmt.Errorf("register cluster %q: %w", cluster, lasting(err))
		}
		if err2 := c.pause(ctx, n); err2 != nil {
			return fmt.Errorf("register cluster %q: %w (last: %w)", cluster, err2, err)
		}
	}
}

func clusterOf(r record) (ClusterInfo, error) {
	name, err := DecodeToken(r.key)
	if err != nil {
		return ClusterInfo{}, fmt.Errorf("key of bucket %s: %w", ClustersBucket, err)
	}
	info := ClusterInfo{}
	if err := json.Unmarshal(r.value, &info); err != nil {
		return ClusterInfo{}, fmt.Errorf("read record of cluster %q: %w", name, err)
	}
	info.Cluster = name
	return info, nil
}

// Clusters are the registered clusters, sorted by name's token.
func (c *Conn) Clusters(ctx context.Context) ([]ClusterInfo, error) {
	records, err := c.list(ctx, ClustersBucket, "")
	if err != nil {
		return nil, fmt.Errorf("list clusters: %w", err)
	}
	out := make([]ClusterInfo, 0, len(records))
	for _, r := range records {
		info, err := clusterOf(r)
		if err != nil {
			return nil, fmt.Errorf("list clusters: %w", err)
		}
		out = append(out, info)
	}
	return out, nil
}

// ClusterChange is one step of WatchClusters.
type ClusterChange struct {
	ClusterInfo        // Cluster is empty: all there was when the watch began has been shown
	Gone        bool   // the cluster was removed
	Seq         uint64 // of the record
}

// WatchClusters shows the registered clusters, then one change without a name,
// then every change, until ctx ends (no error) or with one error. A record that
// cannot be read is logged and passed over.
func (c *Conn) WatchClusters(ctx context.Context) iter.Seq2[ClusterChange, error] {
	return func(yield func(ClusterChange, error) bool) {
		for r, err := range c.watch(ctx, ClustersBucket, "") {
			if err != nil {
				yield(ClusterChange{}, fmt.Errorf("watch clusters: %w", err))
				return
			}
			change := ClusterChange{Gone: r.gone, Seq: r.seq}
			switch {
			case r.key == "":
			case r.gone:
				if change.Cluster, err = DecodeToken(r.key); err != nil {
					continue
				}
			default:
				if change.ClusterInfo, err = clusterOf(r); err != nil {
					c.log.Warn("cluster is passed over", "err", err)
					continue
				}
			}
			if !yield(change, nil) {
				return
			}
		}
	}
}

// Unregister removes a cluster from the bucket; its streams stay (RemoveCluster
// removes both). One that is not there is fine.
func (c *Conn) Unregister(ctx context.Context, cluster string) error {
	for n := 0; ; n++ {
		err := c.erase(ctx, ClustersBucket, EncodeToken(cluster), anySeq)
		if err == nil {
			return nil
		}
		if !passing(err) {
			return fmt.Errorf("unregister cluster %q: %w", cluster, lasting(err))
		}
		if err2 := c.pause(ctx, n); err2 != nil {
			return fmt.Errorf("unregister cluster %q: %w (last: %w)", cluster, err2, err)
		}
	}
}
