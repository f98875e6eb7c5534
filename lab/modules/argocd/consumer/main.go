// Command argocd-consumer opens a nested cluster through its cluster Secret with Argo CD's own code, and runs health checks as Argo CD does.
//
//	argocd-consumer nodes NAMESPACE SECRET    prints name and server of the cluster, then its nodes; runs in a pod of the host cluster
//	argocd-consumer health SCRIPT OBJECT      prints health and message of an object (JSON file) by a Lua script (file)
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/argoproj/argo-cd/v2/common"
	"github.com/argoproj/argo-cd/v2/pkg/apis/application/v1alpha1"
	"github.com/argoproj/argo-cd/v2/util/db"
	"github.com/argoproj/argo-cd/v2/util/lua"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const limit = 30 * time.Second

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) == 3 {
		switch arguments[0] {
		case "nodes":
			return nodes(arguments[1], arguments[2])
		case "health":
			return health(arguments[1], arguments[2])
		}
	}
	return fmt.Errorf("usage: argocd-consumer nodes NAMESPACE SECRET | health SCRIPT OBJECT")
}

func nodes(namespace, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	hostConfig, err := rest.InClusterConfig()
	if err != nil {
		return fmt.Errorf("the host cluster: %w", err)
	}
	host, err := kubernetes.NewForConfig(hostConfig)
	if err != nil {
		return fmt.Errorf("the host cluster: %w", err)
	}
	// By its label alone, as Argo CD finds clusters.
	label := common.LabelKeySecretType + "=" + common.LabelValueSecretTypeCluster
	found, err := host.CoreV1().Secrets(namespace).List(ctx, metav1.ListOptions{LabelSelector: label})
	if err != nil {
		return fmt.Errorf("the Secrets: %w", err)
	}
	for _, secret := range found.Items {
		if secret.Name != name {
			continue
		}
		cluster, err := db.SecretToCluster(&secret)
		if err != nil {
			return fmt.Errorf("the Secret: %w", err)
		}
		fmt.Println(cluster.Name, cluster.Server)
		config, err := cluster.RawRestConfig()
		if err != nil {
			return fmt.Errorf("the cluster: %w", err)
		}
		nested, err := kubernetes.NewForConfig(config)
		if err != nil {
			return fmt.Errorf("the cluster: %w", err)
		}
		list, err := nested.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return fmt.Errorf("list the nested nodes: %w", err)
		}
		for _, node := range list.Items {
			fmt.Println(node.Name)
		}
		return nil
	}
	return fmt.Errorf("no cluster Secret %s among %d", name, len(found.Items))
}

func health(scriptFile, objectFile string) error {
	script, err := os.ReadFile(scriptFile)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(objectFile)
	if err != nil {
		return err
	}
	object := &unstructured.Unstructured{}
	if err := object.UnmarshalJSON(text); err != nil {
		return err
	}
	vm := lua.VM{ResourceOverrides: map[string]v1alpha1.ResourceOverride{"nestling.dev/KindCluster": {HealthLua: string(script)}}}
	chosen, _, err := vm.GetHealthScript(object)
	if err != nil {
		return fmt.Errorf("the script: %w", err)
	}
	status, err := vm.ExecuteHealthLua(object, chosen)
	if err != nil {
		return fmt.Errorf("the script: %w", err)
	}
	fmt.Printf("%s: %s\n", status.Status, status.Message)
	return nil
}
