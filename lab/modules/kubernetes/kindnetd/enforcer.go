package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// settleFor bounds how often rules are made anew while many pods come and go.
const settleFor = 200 * time.Millisecond

// hooks are where a pod's packets pass before kube-proxy's own rules and after it has chosen an endpoint: on the way to
// others, and to this node. What this node itself sends (probes of the kubelet) passes neither.
var hooks = [][2]string{{"FORWARD", egressChain}, {"FORWARD", ingressChain}, {"INPUT", egressChain}}

// enforcer makes NetworkPolicies effective for the pods of one node. Where no policy exists it watches those and
// nothing else, and touches no rule.
type enforcer struct {
	node       string
	core       rest.Interface
	policies   cache.Store
	synced     []cache.InformerSynced
	pods       cache.Store
	namespaces cache.Store
	start      sync.Once
	changed    chan struct{}
	loaded     string
}

// enforce runs until the context ends.
func enforce(ctx context.Context, node string, core, networking rest.Interface) {
	e := &enforcer{node: node, core: core, changed: make(chan struct{}, 1)}
	var informer cache.Controller
	e.policies, informer = e.inform(networking, "networkpolicies", &networkingv1.NetworkPolicy{})
	e.synced = append(e.synced, informer.HasSynced)
	go informer.RunWithContext(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.changed:
		}
		if len(e.policies.List()) == 0 && e.loaded == "" {
			continue
		}
		e.start.Do(func() { e.watchPods(ctx) })
		if err := e.apply(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "kindnetd: policies: retrying:", err)
			time.AfterFunc(retryAfter, e.notify)
		}
		time.Sleep(settleFor)
	}
}

func (e *enforcer) inform(client rest.Interface, resource string, kind runtime.Object) (cache.Store, cache.Controller) {
	return cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.NewListWatchFromClient(client, resource, corev1.NamespaceAll, fields.Everything()),
		ObjectType:    kind,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { e.notify() },
			UpdateFunc: func(any, any) { e.notify() },
			DeleteFunc: func(any) { e.notify() },
		},
	})
}

func (e *enforcer) notify() {
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

func (e *enforcer) watchPods(ctx context.Context) {
	var pods, namespaces cache.Controller
	e.pods, pods = e.inform(e.core, "pods", &corev1.Pod{})
	e.namespaces, namespaces = e.inform(e.core, "namespaces", &corev1.Namespace{})
	e.synced = append(e.synced, pods.HasSynced, namespaces.HasSynced)
	go pods.RunWithContext(ctx)
	go namespaces.RunWithContext(ctx)
}

// apply loads the rules if they have changed; the chains change as a whole.
func (e *enforcer) apply(ctx context.Context) error {
	// Half a picture would cut off pods that a policy means to let in.
	if !cache.WaitForCacheSync(ctx.Done(), e.synced...) {
		return ctx.Err()
	}
	rules := e.world().compose(e.node)
	if rules == e.loaded {
		return nil
	}
	if err := load("iptables-restore", rules); err != nil {
		return err
	}
	for _, hook := range hooks {
		jump := []string{"--wait", "5", "-t", "mangle", "-C", hook[0], "-j", hook[1]}
		if exec.Command("iptables", jump...).Run() == nil {
			continue
		}
		jump[4] = "-A"
		if err := explain(exec.Command("iptables", jump...)); err != nil {
			return err
		}
	}
	e.loaded = rules
	return nil
}

// world reads the caches, in an order that does not change by itself.
func (e *enforcer) world() *world {
	w := &world{policies: all[*networkingv1.NetworkPolicy](e.policies), pods: all[*corev1.Pod](e.pods), namespaces: map[string]labels.Set{}}
	for _, namespace := range all[*corev1.Namespace](e.namespaces) {
		w.namespaces[namespace.Name] = namespace.Labels
	}
	return w
}

func all[T metav1.Object](store cache.Store) []T {
	var found []T
	for _, object := range store.List() {
		if one, ok := object.(T); ok {
			found = append(found, one)
		}
	}
	slices.SortFunc(found, func(a, b T) int { return cmp.Compare(a.GetUID(), b.GetUID()) })
	return found
}
