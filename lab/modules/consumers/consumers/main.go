// Command consumers opens a nested cluster through its Secret in the host cluster with the code of the tools that read such Secrets, and prints the names
// of its nodes. It runs in a pod of the host cluster, as the tools do.
//
//	consumers cluster-api NAMESPACE CLUSTER   Cluster API's controllers: the Secret by the name of the cluster
//	consumers flux NAMESPACE SECRET [KEY]     Flux's controllers: spec.kubeConfig.secretRef
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/fluxcd/pkg/apis/meta"
	flux "github.com/fluxcd/pkg/runtime/client"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/cluster-api/util/kubeconfig"
	"sigs.k8s.io/cluster-api/util/secret"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
)

const limit = 30 * time.Second

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) < 3 {
		return fmt.Errorf("usage: consumers cluster-api|flux NAMESPACE NAME [KEY]")
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	hostConfig, err := config.GetConfig()
	if err != nil {
		return fmt.Errorf("the host cluster: %w", err)
	}
	host, err := client.New(hostConfig, client.Options{Scheme: scheme.Scheme})
	if err != nil {
		return fmt.Errorf("the host cluster: %w", err)
	}
	var nested client.Client
	switch namespace, name := arguments[1], arguments[2]; arguments[0] {
	case "cluster-api":
		nested, err = clusterAPI(ctx, host, client.ObjectKey{Namespace: namespace, Name: name})
	case "flux":
		key := ""
		if len(arguments) > 3 {
			key = arguments[3]
		}
		nested, err = kustomization(ctx, host, namespace, name, key)
	default:
		return fmt.Errorf("no such consumer: %s", arguments[0])
	}
	if err != nil {
		return err
	}
	nodes := &corev1.NodeList{}
	if err := nested.List(ctx, nodes); err != nil {
		return fmt.Errorf("list the nested nodes: %w", err)
	}
	for _, node := range nodes.Items {
		fmt.Println(node.Name)
	}
	return nil
}

// clusterAPI does what Cluster API's cluster cache does to reach a workload cluster.
func clusterAPI(ctx context.Context, host client.Client, cluster client.ObjectKey) (client.Client, error) {
	found, err := secret.Get(ctx, host, cluster, secret.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("the Secret: %w", err)
	}
	// What its controllers cache, and `clusterctl move` takes along.
	if label := found.Labels["cluster.x-k8s.io/cluster-name"]; label != cluster.Name || found.Type != "cluster.x-k8s.io/secret" {
		return nil, fmt.Errorf("the Secret has the label %q and the type %q", label, found.Type)
	}
	text, err := kubeconfig.FromSecret(ctx, host, cluster)
	if err != nil {
		return nil, fmt.Errorf("the kubeconfig: %w", err)
	}
	nested, err := clientcmd.RESTConfigFromKubeConfig(text)
	if err != nil {
		return nil, fmt.Errorf("the kubeconfig: %w", err)
	}
	return client.New(nested, client.Options{Scheme: scheme.Scheme})
}

// kustomization does what Flux's kustomize-controller and helm-controller do with spec.kubeConfig.secretRef.
func kustomization(ctx context.Context, host client.Client, namespace, name, key string) (client.Client, error) {
	reference := &meta.KubeConfigReference{SecretRef: &meta.SecretKeyReference{Name: name, Key: key}}
	impersonator := flux.NewImpersonator(host, flux.WithScheme(scheme.Scheme), flux.WithKubeConfig(reference, flux.KubeConfigOptions{}, namespace, nil))
	nested, _, err := impersonator.GetClient(ctx)
	return nested, err
}
