package main

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
)

// nodeNetwork is what this node's network was last made to be.
type nodeNetwork struct {
	hostIPs    []string
	podSubnets []*net.IPNet
	masquerade bool
	routes     map[string]*net.IPNet
}

// apply makes this node's network fit the nodes there are. Pods start as soon as the CNI configuration is written, so
// that comes first; one node's failure does not hold up the others.
func (n *nodeNetwork) apply(nodes []*corev1.Node) error {
	var failed error
	for _, node := range nodes {
		if n.isThisNode(node) {
			failed = errors.Join(failed, writeConflist(podCIDRs(node)))
		}
	}
	if !n.masquerade {
		if err := ensureMasquerade(n.podSubnets); err != nil {
			failed = errors.Join(failed, err)
		} else {
			n.masquerade = true
		}
	}
	return errors.Join(failed, n.applyRoutes(nodes))
}

func (n *nodeNetwork) applyRoutes(nodes []*corev1.Node) error {
	var failed error
	wanted := map[string]bool{}
	for _, node := range nodes {
		if n.isThisNode(node) {
			continue
		}
		for _, cidr := range podCIDRs(node) {
			_, destination, err := net.ParseCIDR(cidr)
			if err != nil {
				failed = errors.Join(failed, err)
				continue
			}
			gateway := nodeAddress(node, destination.IP.To4() != nil)
			if gateway == nil {
				continue
			}
			wanted[cidr] = true
			if err := netlink.RouteReplace(&netlink.Route{Dst: destination, Gw: gateway}); err != nil {
				failed = errors.Join(failed, fmt.Errorf("route to %s via %s: %w", cidr, gateway, err))
				continue
			}
			n.routes[cidr] = destination
		}
	}
	for cidr, destination := range n.routes {
		if !wanted[cidr] {
			// Gone already is as good as removed.
			_ = netlink.RouteDel(&netlink.Route{Dst: destination})
			delete(n.routes, cidr)
		}
	}
	return failed
}

func (n *nodeNetwork) isThisNode(node *corev1.Node) bool {
	for _, address := range node.Status.Addresses {
		if address.Type == corev1.NodeInternalIP && slices.Contains(n.hostIPs, address.Address) {
			return true
		}
	}
	return false
}

func (n *nodeNetwork) nodeName(nodes []*corev1.Node) string {
	for _, node := range nodes {
		if n.isThisNode(node) {
			return node.Name
		}
	}
	return ""
}

func nodeAddress(node *corev1.Node, ipv4 bool) net.IP {
	for _, address := range node.Status.Addresses {
		if address.Type != corev1.NodeInternalIP {
			continue
		}
		if ip := net.ParseIP(address.Address); ip != nil && (ip.To4() != nil) == ipv4 {
			return ip
		}
	}
	return nil
}

func podCIDRs(node *corev1.Node) []string {
	if len(node.Spec.PodCIDRs) > 0 {
		return node.Spec.PodCIDRs
	}
	if node.Spec.PodCIDR != "" {
		return []string{node.Spec.PodCIDR}
	}
	return nil
}
