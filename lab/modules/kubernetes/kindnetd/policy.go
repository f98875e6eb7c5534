package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Chains of the two directions, as a pod sees them. A packet that returns from both may pass.
const (
	egressChain  = "NESTLING-POLICY-OUT"
	ingressChain = "NESTLING-POLICY-IN"
)

// world is what policies, pods and namespaces there are.
type world struct {
	policies   []*networkingv1.NetworkPolicy
	pods       []*corev1.Pod
	namespaces map[string]labels.Set
}

// direction is one of the two halves of a policy: whose side is selected, and how a packet shows the two sides.
type direction struct {
	chain, pod, peer string
	policyType       networkingv1.PolicyType
}

var directions = []direction{
	{egressChain, "-s", "-d", networkingv1.PolicyTypeEgress},
	{ingressChain, "-d", "-s", networkingv1.PolicyTypeIngress},
}

// rule is what one entry of a policy lets pass.
type rule struct {
	peers []networkingv1.NetworkPolicyPeer
	ports []networkingv1.NetworkPolicyPort
}

// compose turns policies into rules for the pods of this node: a pod that a policy selects in a direction passes in
// that direction what one of these policies lets pass, and nothing else. IPv4 only; ports by number only.
func (w *world) compose(node string) string {
	var text strings.Builder
	fmt.Fprintf(&text, "*mangle\n:%s - [0:0]\n:%s - [0:0]\n", egressChain, ingressChain)
	for _, direction := range directions {
		fmt.Fprintf(&text, "-A %s -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN\n", direction.chain)
		for _, pod := range w.pods {
			if pod.Spec.NodeName == node && address(pod).IsValid() {
				w.composePod(&text, direction, pod)
			}
		}
	}
	text.WriteString("COMMIT\n")
	return text.String()
}

func (w *world) composePod(text *strings.Builder, direction direction, pod *corev1.Pod) {
	selected := false
	own := fmt.Sprintf("-A %s %s %s/32", direction.chain, direction.pod, address(pod))
	for _, policy := range w.policies {
		if policy.Namespace != pod.Namespace || !slices.Contains(policy.Spec.PolicyTypes, direction.policyType) ||
			!matches(&policy.Spec.PodSelector, pod.Labels) {
			continue
		}
		selected = true
		for _, rule := range rules(policy, direction.policyType) {
			for _, peer := range w.peers(policy.Namespace, rule.peers) {
				for _, port := range ports(rule.ports) {
					fmt.Fprintf(text, "%s %s %s%s -j RETURN\n", own, direction.peer, peer, port)
				}
			}
		}
	}
	if selected {
		fmt.Fprintf(text, "%s -j DROP\n", own)
	}
}

func rules(policy *networkingv1.NetworkPolicy, policyType networkingv1.PolicyType) []rule {
	var all []rule
	if policyType == networkingv1.PolicyTypeEgress {
		for _, entry := range policy.Spec.Egress {
			all = append(all, rule{entry.To, entry.Ports})
		}
		return all
	}
	for _, entry := range policy.Spec.Ingress {
		all = append(all, rule{entry.From, entry.Ports})
	}
	return all
}

// peers are the ranges that a rule names; a rule that names nobody means everybody.
func (w *world) peers(namespace string, named []networkingv1.NetworkPolicyPeer) []netip.Prefix {
	if len(named) == 0 {
		return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0)}
	}
	var found []netip.Prefix
	for _, peer := range named {
		if peer.IPBlock != nil {
			if block, err := netip.ParsePrefix(peer.IPBlock.CIDR); err == nil && block.Addr().Is4() {
				found = append(found, without(block.Masked(), prefixes(peer.IPBlock.Except))...)
			}
			continue
		}
		for _, pod := range w.pods {
			if peer.NamespaceSelector == nil && pod.Namespace != namespace ||
				peer.NamespaceSelector != nil && !matches(peer.NamespaceSelector, w.namespaces[pod.Namespace]) ||
				peer.PodSelector != nil && !matches(peer.PodSelector, pod.Labels) {
				continue
			}
			if address := address(pod); address.IsValid() {
				found = append(found, netip.PrefixFrom(address, 32))
			}
		}
	}
	return found
}

// ports are the matches of a rule's ports; a rule that names none means all.
func ports(named []networkingv1.NetworkPolicyPort) []string {
	if len(named) == 0 {
		return []string{""}
	}
	var found []string
	for _, port := range named {
		protocol := "tcp"
		if port.Protocol != nil {
			protocol = strings.ToLower(string(*port.Protocol))
		}
		switch number := port.Port; {
		case number == nil:
			found = append(found, " -p "+protocol)
		case number.IntValue() == 0:
			// A name. Nothing passes rather than everything.
		case port.EndPort != nil:
			found = append(found, fmt.Sprintf(" -p %s --dport %d:%d", protocol, number.IntValue(), *port.EndPort))
		default:
			found = append(found, fmt.Sprintf(" -p %s --dport %d", protocol, number.IntValue()))
		}
	}
	return found
}

// without is a range as the ranges that are left of it: iptables has no "but".
func without(block netip.Prefix, except []netip.Prefix) []netip.Prefix {
	touched := false
	for _, other := range except {
		if other.Bits() <= block.Bits() && other.Contains(block.Addr()) {
			return nil
		}
		touched = touched || block.Overlaps(other)
	}
	if !touched {
		return []netip.Prefix{block}
	}
	bits := block.Bits() + 1
	upper := block.Addr().As4()
	upper[(bits-1)/8] |= 0x80 >> ((bits - 1) % 8)
	halves := without(netip.PrefixFrom(block.Addr(), bits), except)
	return append(halves, without(netip.PrefixFrom(netip.AddrFrom4(upper), bits), except)...)
}

func prefixes(texts []string) []netip.Prefix {
	var found []netip.Prefix
	for _, text := range texts {
		if prefix, err := netip.ParsePrefix(text); err == nil {
			found = append(found, prefix.Masked())
		}
	}
	return found
}

// address is a pod's own; a pod in the host's network, or one that has ended, has none.
func address(pod *corev1.Pod) netip.Addr {
	if pod.Spec.HostNetwork || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return netip.Addr{}
	}
	if ip, err := netip.ParseAddr(pod.Status.PodIP); err == nil && ip.Is4() {
		return ip
	}
	return netip.Addr{}
}

func matches(selector *metav1.LabelSelector, have labels.Set) bool {
	compiled, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && compiled.Matches(have)
}
