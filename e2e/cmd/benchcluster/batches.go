package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
)

// copier makes a large cluster of a small one: each batch of the small one is written many times to the bus that is
// measured, under other names of node and pods and other UIDs. What is in the batches is real, and so are their ticks.
type copier struct {
	b      *bench
	from   *bus.Conn
	copies int // of each node
	enc    *proto.Encoder
	out    *bus.Publisher
}

func newCopier(b *bench, from *bus.Conn, simulated int) *copier {
	return &copier{b: b, from: from, copies: (b.nodes + simulated - 1) / simulated, enc: proto.NewEncoder(), out: b.conn.Publisher(bus.PublisherConfig{})}
}

// run copies until ctx ends.
func (c *copier) run(ctx context.Context) error {
	known, err := c.cluster(ctx)
	if err != nil || !known {
		return err
	}
	dec := proto.NewDecoder()
	for d, err := range c.from.Replay(ctx, bus.ReplayConfig{Stream: bus.SamplesStream(cluster)}) {
		if err != nil {
			return err
		}
		address, err := bus.ParseSubject(d.Subject)
		if err != nil {
			return err
		}
		switch address.Kind {
		case bus.Samples:
			err = c.batch(ctx, dec, d)
		case bus.Inventory:
			err = c.inventory(ctx, dec, d)
		}
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("copy message %d of %s: %w", d.Seq, d.Subject, err)
		}
	}
	c.out.Wait()
	return nil
}

// cluster enters the copy as the scraper has entered the template; false where ctx ends before.
func (c *copier) cluster(ctx context.Context) (bool, error) {
	for change, err := range c.from.WatchClusters(ctx) {
		if err != nil {
			return false, err
		}
		if info := change.ClusterInfo; info.Cluster == cluster && info.UID != "" {
			return true, c.b.conn.Register(ctx, cluster, info)
		}
	}
	return false, nil
}

// name is that of copy i; copy 0 has the names of the template.
func name(s string, i int) string {
	if i == 0 || s == "" {
		return s
	}
	return s + "-" + strconv.Itoa(i)
}

func (c *copier) publish(ctx context.Context, subject, id string, data []byte) error {
	_, err := c.out.Begin(ctx, bus.Message{Subject: subject, ID: id, Data: data, Stream: bus.SamplesStream(cluster)})
	return err
}

func (c *copier) batch(ctx context.Context, dec *proto.Decoder, d bus.Delivery) error {
	var b proto.Batch
	if err := dec.Batch(d.Data, &b); err != nil {
		return err
	}
	node := strings.Clone(b.Node)
	original := append([]proto.Entity(nil), b.Entities...)
	for i := range c.copies {
		b.Node = name(node, i)
		b.Scraped = time.Now().UnixNano() // what comes is our delay from here on
		for row := range b.Entities {
			e := &b.Entities[row]
			switch e.Kind {
			case proto.KindNode:
				e.Name, e.Hostname, e.UID = name(original[row].Name, i), name(original[row].Hostname, i), name(original[row].UID, i)
			case proto.KindPod:
				e.Name, e.UID = name(original[row].Name, i), name(original[row].UID, i)
			}
		}
		body, err := c.enc.Batch(&b)
		if err != nil {
			return err
		}
		id := fmt.Sprintf("%s/%s/%d", cluster, b.Node, b.Tick)
		if err := c.publish(ctx, bus.SamplesSubject(cluster, b.Node), id, append([]byte(nil), body...)); err != nil {
			return err
		}
	}
	return nil
}

// inventory copies the nodes that should report; the rest is everybody's.
func (c *copier) inventory(ctx context.Context, dec *proto.Decoder, d bus.Delivery) error {
	data := d.Data
	var v proto.Inventory
	if err := dec.Inventory(data, &v); err != nil {
		return err
	}
	if v.Subject == proto.InventoryNodes {
		if v.Parts != 1 {
			return errors.New("the template's nodes come in parts")
		}
		var all []proto.InventoryNode
		for i := range c.copies {
			for _, n := range v.Nodes {
				all = append(all, proto.InventoryNode{Name: name(n.Name, i), UID: name(n.UID, i)})
			}
		}
		v.Nodes = all
		body, err := c.enc.Inventory(&v)
		if err != nil {
			return err
		}
		data = append([]byte(nil), body...)
	}
	ack, err := c.out.Publish(ctx, bus.Message{Subject: d.Subject, ID: d.ID(), Data: data})
	if err == nil && ack.Duplicate {
		return errors.New("an inventory was stored before")
	}
	return err
}
