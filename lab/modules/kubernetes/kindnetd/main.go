// Command kindnetd is the lab's declared stand-in for kind's node network daemon, which is not to be had as a Go
// module. It speaks the same contract (environment, mounts and RBAC of kind's own manifest) and does the same three
// things: it tells containerd how to connect this node's pods, routes to the other nodes' pods, and masquerades what
// leaves the pod network. It enforces NetworkPolicy objects as far as tests need it: IPv4, ports by number, and from
// the moment on at which it has seen a pod's address.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// retryAfter is how soon a failed step is tried again; a step that succeeded waits for the next change of a node.
const retryAfter = time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "kindnetd:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	hostIPs := splitList(os.Getenv("HOST_IP"))
	podSubnets, err := parseSubnets(splitList(os.Getenv("POD_SUBNET")))
	if err != nil {
		return err
	}
	if len(hostIPs) == 0 || len(podSubnets) == 0 {
		return fmt.Errorf("HOST_IP and POD_SUBNET must be set")
	}
	client, err := groupClient(os.Getenv("CONTROL_PLANE_ENDPOINT"), "/api", corev1.SchemeGroupVersion, corev1.AddToScheme)
	if err != nil {
		return err
	}
	networking, err := groupClient(os.Getenv("CONTROL_PLANE_ENDPOINT"), "/apis", networkingv1.SchemeGroupVersion, networkingv1.AddToScheme)
	if err != nil {
		return err
	}

	changed := make(chan struct{}, 1)
	notify := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	store, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.NewListWatchFromClient(client, "nodes", corev1.NamespaceAll, fields.Everything()),
		ObjectType:    &corev1.Node{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { notify() },
			UpdateFunc: func(any, any) { notify() },
			DeleteFunc: func(any) { notify() },
		},
	})
	go informer.RunWithContext(ctx)

	enforcing := false
	network := &nodeNetwork{hostIPs: hostIPs, podSubnets: podSubnets, routes: map[string]*net.IPNet{}}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		if err := network.apply(nodes(store)); err != nil {
			fmt.Fprintln(os.Stderr, "kindnetd: retrying:", err)
			time.AfterFunc(retryAfter, notify)
		}
		// Policies name the node by its name, which the first look at the nodes tells.
		if name := network.nodeName(nodes(store)); name != "" && !enforcing {
			enforcing = true
			go enforce(ctx, name, client, networking)
		}
	}
}

// groupClient reads one API group and knows its types only: loading every API group costs start-up time, and this
// daemon's start is part of the cluster's.
func groupClient(endpoint, path string, version schema.GroupVersion, add func(*runtime.Scheme) error) (rest.Interface, error) {
	config, err := rest.InClusterConfig()
	if err != nil {
		return nil, err
	}
	if endpoint != "" {
		// The service address works only once kube-proxy does.
		config.Host = "https://" + endpoint
	}
	scheme := runtime.NewScheme()
	if err := add(scheme); err != nil {
		return nil, err
	}
	config.APIPath = path
	config.GroupVersion = &version
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	return rest.RESTClientFor(config)
}

func nodes(store cache.Store) []*corev1.Node {
	var all []*corev1.Node
	for _, object := range store.List() {
		if node, ok := object.(*corev1.Node); ok {
			all = append(all, node)
		}
	}
	return all
}

func splitList(value string) []string {
	return strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' })
}

func parseSubnets(values []string) ([]*net.IPNet, error) {
	var subnets []*net.IPNet
	for _, value := range values {
		_, subnet, err := net.ParseCIDR(value)
		if err != nil {
			return nil, err
		}
		subnets = append(subnets, subnet)
	}
	return subnets, nil
}
