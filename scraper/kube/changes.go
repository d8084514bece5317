package kube

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/klog/v2"

	corev1 "k8s.io/api/core/v1"
)

// Events are the events of all namespaces; events.k8s.io/v1 is another view of the same objects.
var Events = Resource{Path: "/api/v1/events", Name: "events", Object: &corev1.Event{}}

// ErrExpired says that the API server no longer has what comes after a resource version: list again.
var ErrExpired = errors.New("resource version is too old")

// page is how many objects a list asks for at once.
const page = 500

// Version is the API server's present resource version of a resource, "" where it tells none. It reads
// at most one object.
func (c *Client) Version(ctx context.Context, res Resource) (string, error) {
	list, err := c.page(ctx, &res, metav1.ListOptions{Limit: 1})
	if err != nil {
		return "", err
	}
	return list.GetResourceVersion(), nil
}

// List gives every object of a resource to f, page by page, in the order of namespaces and names, as
// they were at the resource version that it returns. An error of f ends it. ErrExpired: the list took
// longer than the API server keeps the version that it began with; what f has seen is as good as ever.
func (c *Client) List(ctx context.Context, res Resource, f func(runtime.Object) error) (version string, err error) {
	opts := metav1.ListOptions{Limit: page}
	for {
		list, err := c.page(ctx, &res, opts)
		if err != nil {
			return "", err
		}
		obj, ok := list.(runtime.Object)
		if !ok {
			return "", fmt.Errorf("list %s from %s: answer of type %T", res.Name, c.host, list)
		}
		if err := meta.EachListItem(obj, f); err != nil {
			return "", err
		}
		if opts.Continue = list.GetContinue(); opts.Continue == "" {
			return list.GetResourceVersion(), nil
		}
	}
}

func (c *Client) page(ctx context.Context, res *Resource, opts metav1.ListOptions) (meta.List, error) {
	ctx, cancel := context.WithTimeout(klog.NewContext(ctx, logr.Discard()), c.timeout) // errors are told by the caller
	defer cancel()
	opts.FieldSelector = res.Selector
	obj, err := res.request(c, false).VersionedParams(&opts, metav1.ParameterCodec).Do(ctx).Get()
	if err != nil {
		return nil, c.said(err, "list", res)
	}
	list, err := meta.ListAccessor(obj)
	if err != nil {
		return nil, fmt.Errorf("list %s from %s: %w", res.Name, c.host, err)
	}
	return list, nil
}

// Watch gives every change of a resource after a resource version to f, until the server ends the watch
// (nil, which it does every few minutes), f returns an error, ctx ends or something is wrong. It calls up
// once the server has agreed. kind is Added, Modified, Deleted or Bookmark; a bookmark's object has nothing but its resource version.
// ErrExpired: there are changes after version that the server no longer has.
func (c *Client) Watch(ctx context.Context, res Resource, version string, up func(), f func(kind watch.EventType, o runtime.Object) error) error {
	ctx = klog.NewContext(ctx, logr.Discard())
	seconds := int64(300 + rand.IntN(300))
	// The server ends it by then; a connection that died in silence is given up soon after.
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds+30)*time.Second)
	defer cancel()
	opts := metav1.ListOptions{Watch: true, AllowWatchBookmarks: true, ResourceVersion: version, TimeoutSeconds: &seconds, FieldSelector: res.Selector}
	w, err := res.request(c, true).VersionedParams(&opts, metav1.ParameterCodec).Watch(ctx)
	if err != nil {
		return c.said(err, "watch", &res)
	}
	defer w.Stop()
	up()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case ev, ok := <-w.ResultChan():
			switch {
			case !ok:
				return ctx.Err()
			case ev.Type == watch.Error:
				return c.said(apierrors.FromObject(ev.Object), "watch", &res)
			}
			if err := f(ev.Type, ev.Object); err != nil {
				return err
			}
		}
	}
}

// said words what the API server answered.
func (c *Client) said(err error, verb string, res *Resource) error {
	if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) || strings.Contains(err.Error(), "too old resource version") {
		return fmt.Errorf("%s %s from %s: %w: %w", verb, res.Name, c.host, ErrExpired, err)
	}
	return fmt.Errorf("%s %s from %s: %w", verb, res.Name, c.host, explain(err, "list, watch", res.Name))
}
