package main

import (
	"encoding/json"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestConflistCarriesEveryRangeAndTheMTU(t *testing.T) {
	content, err := conflist([]string{"10.244.0.0/24", "fd00:10:244::/64"}, 1450)
	if err != nil {
		t.Fatal(err)
	}
	var parsed struct {
		Plugins []struct {
			Type string
			MTU  int
			IPAM struct {
				Ranges [][]struct{ Subnet string }
				Routes []struct{ Dst string }
			}
		}
	}
	if err := json.Unmarshal(content, &parsed); err != nil {
		t.Fatal(err)
	}
	ptp := parsed.Plugins[0]
	if ptp.Type != "ptp" || ptp.MTU != 1450 || len(ptp.IPAM.Ranges) != 2 || ptp.IPAM.Routes[1].Dst != "::/0" {
		t.Fatalf("unexpected conflist: %s", content)
	}
}

func TestTrafficInsideThePodNetworkIsNotMasqueraded(t *testing.T) {
	subnets, err := parseSubnets(splitList("10.244.0.0/16,10.245.0.0/16"))
	if err != nil {
		t.Fatal(err)
	}
	rules := masqueradeRules(subnets)
	if strings.Index(rules, "-d 10.245.0.0/16 -j RETURN") > strings.Index(rules, "-j MASQUERADE") {
		t.Fatalf("masquerade comes first:\n%s", rules)
	}
}

func TestNodeAddressMatchesTheFamily(t *testing.T) {
	node := &corev1.Node{Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
		{Type: corev1.NodeHostName, Address: "a"},
		{Type: corev1.NodeInternalIP, Address: "172.18.0.2"},
		{Type: corev1.NodeInternalIP, Address: "fc00::2"},
	}}}
	if got := nodeAddress(node, false).String(); got != "fc00::2" {
		t.Fatalf("got %s", got)
	}
	if got := nodeAddress(node, true).String(); got != "172.18.0.2" {
		t.Fatalf("got %s", got)
	}
}
