// Command crictl is the lab's declared stand-in for the CRI command line, which is not to be had as a Go module. It
// answers what kind asks of it (`inspecti NAME`, `images`) and what a person looking into a node asks first (`ps`).
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	remote "k8s.io/cri-client/pkg"
)

const (
	endpoint = "unix:///run/containerd/containerd.sock"
	timeout  = 10 * time.Second
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "crictl (the lab's stand-in):", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	switch {
	case len(arguments) == 2 && arguments[0] == "inspecti":
		return inspectImage(ctx, arguments[1])
	case len(arguments) == 1 && arguments[0] == "images":
		return listImages(ctx)
	case len(arguments) >= 1 && arguments[0] == "ps":
		return listContainers(ctx)
	default:
		return fmt.Errorf("only inspecti NAME, images and ps are here, not %q", strings.Join(arguments, " "))
	}
}

func inspectImage(ctx context.Context, name string) error {
	images, err := remote.NewRemoteImageService(endpoint, timeout, nil, nil)
	if err != nil {
		return err
	}
	status, err := images.ImageStatus(ctx, &runtimeapi.ImageSpec{Image: name}, false)
	if err != nil {
		return err
	}
	if status.Image == nil {
		return fmt.Errorf("no such image %q present", name)
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(map[string]any{"status": map[string]any{
		"id":          status.Image.Id,
		"repoTags":    status.Image.RepoTags,
		"repoDigests": status.Image.RepoDigests,
		"size":        fmt.Sprint(status.Image.Size),
	}})
}

func listImages(ctx context.Context) error {
	images, err := remote.NewRemoteImageService(endpoint, timeout, nil, nil)
	if err != nil {
		return err
	}
	all, err := images.ListImages(ctx, nil)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 4, 3, ' ', 0)
	fmt.Fprintln(table, "IMAGE\tIMAGE ID\tSIZE")
	for _, image := range all {
		for _, tag := range image.RepoTags {
			fmt.Fprintf(table, "%s\t%.20s\t%d\n", tag, image.Id, image.Size)
		}
	}
	return table.Flush()
}

func listContainers(ctx context.Context) error {
	runtime, err := remote.NewRemoteRuntimeService(endpoint, timeout, nil, nil)
	if err != nil {
		return err
	}
	all, err := runtime.ListContainers(ctx, nil)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 4, 3, ' ', 0)
	fmt.Fprintln(table, "CONTAINER\tSTATE\tNAME\tATTEMPT\tPOD")
	for _, container := range all {
		labels := container.Labels
		fmt.Fprintf(table, "%.13s\t%s\t%s\t%d\t%s/%s\n", container.Id, container.State, container.Metadata.GetName(),
			container.Metadata.GetAttempt(), labels["io.kubernetes.pod.namespace"], labels["io.kubernetes.pod.name"])
	}
	return table.Flush()
}
