package main

import (
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func pod(namespace, name, node, ip string, with labels.Set) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: with},
		Spec:       corev1.PodSpec{NodeName: node},
		Status:     corev1.PodStatus{PodIP: ip},
	}
}

func tcp(number int) networkingv1.NetworkPolicyPort {
	protocol, port := corev1.ProtocolTCP, intstr.FromInt(number)
	return networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &port}
}

// ours is the policy of one cluster, beside the default-deny of its namespace.
func ours() *world {
	both := []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	operators := &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": "operators"}}
	deny := &networkingv1.NetworkPolicy{Spec: networkingv1.NetworkPolicySpec{PolicyTypes: both}}
	allow := &networkingv1.NetworkPolicy{Spec: networkingv1.NetworkPolicySpec{
		PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"cluster": "a"}},
		PolicyTypes: both,
		Ingress: []networkingv1.NetworkPolicyIngressRule{
			{Ports: []networkingv1.NetworkPolicyPort{tcp(6443)}},
			{Ports: []networkingv1.NetworkPolicyPort{tcp(7443)}, From: []networkingv1.NetworkPolicyPeer{{NamespaceSelector: operators}}},
		},
		Egress: []networkingv1.NetworkPolicyEgressRule{
			{Ports: []networkingv1.NetworkPolicyPort{tcp(53)}},
			{To: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "0.0.0.0/0", Except: []string{"10.0.0.0/8", "172.18.0.2/32"}}}}},
		},
	}}
	deny.Namespace, allow.Namespace = "clusters", "clusters"
	return &world{
		policies: []*networkingv1.NetworkPolicy{deny, allow},
		pods: []*corev1.Pod{
			pod("clusters", "a", "one", "10.244.0.5", labels.Set{"cluster": "a"}),
			pod("clusters", "stranger", "one", "10.244.0.6", nil),
			pod("clusters", "elsewhere", "two", "10.244.1.7", labels.Set{"cluster": "a"}),
			pod("operators", "operator", "two", "10.244.1.8", nil),
			pod("default", "free", "one", "10.244.0.9", nil),
		},
		namespaces: map[string]labels.Set{
			"operators": {"kubernetes.io/metadata.name": "operators"},
			"default":   {"kubernetes.io/metadata.name": "default"},
		},
	}
}

// passes is what netfilter does with the rules for a new connection between two pods.
func passes(t *testing.T, rules, from, to, port string) bool {
	t.Helper()
	for _, direction := range directions {
		if !passesChain(t, rules, direction.chain, from, to, port) {
			return false
		}
	}
	return true
}

func passesChain(t *testing.T, rules, chain, from, to, port string) bool {
	t.Helper()
	for _, line := range strings.Split(rules, "\n") {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != "-A" || words[1] != chain || strings.Contains(line, "--ctstate") {
			continue
		}
		hit := true
		for at, word := range words {
			switch word {
			case "-s":
				hit = hit && netip.MustParsePrefix(words[at+1]).Contains(netip.MustParseAddr(from))
			case "-d":
				hit = hit && netip.MustParsePrefix(words[at+1]).Contains(netip.MustParseAddr(to))
			case "--dport":
				hit = hit && words[at+1] == port
			}
		}
		if hit {
			return words[len(words)-1] == "RETURN"
		}
	}
	return true
}

func TestThePolicyOfACluster(t *testing.T) {
	rules := ours().compose("one")
	for _, test := range []struct {
		from, to, port string
		expected       bool
	}{
		// Inwards: the API for everybody, the agent for the operator.
		{"10.244.0.9", "10.244.0.5", "6443", true},
		{"203.0.113.7", "10.244.0.5", "6443", true},
		{"10.244.1.8", "10.244.0.5", "7443", true},
		{"10.244.0.9", "10.244.0.5", "7443", false},
		{"10.244.0.9", "10.244.0.5", "22", false},
		// Outwards: names, and the world without the host.
		{"10.244.0.5", "10.244.0.9", "53", true},
		{"10.244.0.5", "203.0.113.7", "443", true},
		{"10.244.0.5", "172.18.0.3", "443", true},
		{"10.244.0.5", "172.18.0.2", "6443", false},
		{"10.244.0.5", "10.244.0.9", "443", false},
		// The default of the namespace.
		{"10.244.0.6", "203.0.113.7", "443", false},
		{"10.244.0.9", "10.244.0.6", "80", false},
		// Others are not touched.
		{"10.244.0.9", "10.96.0.1", "443", true},
		{"10.244.0.9", "203.0.113.7", "25", true},
	} {
		if got := passes(t, rules, test.from, test.to, test.port); got != test.expected {
			t.Errorf("%s to %s:%s passes: %v\n%s", test.from, test.to, test.port, got, rules)
		}
	}
	if strings.Contains(rules, "10.244.1.7/32 -j DROP") {
		t.Errorf("a pod of another node is that node's part:\n%s", rules)
	}
}

func TestWithoutThePolicyTheClusterIsCutOff(t *testing.T) {
	world := ours()
	world.policies = world.policies[:1]
	if rules := world.compose("one"); passes(t, rules, "10.244.0.9", "10.244.0.5", "6443") || passes(t, rules, "10.244.0.5", "203.0.113.7", "443") {
		t.Errorf("default-deny lets pass:\n%s", rules)
	}
	world.policies = nil
	if rules := world.compose("one"); strings.Contains(rules, "DROP") || !passes(t, rules, "10.244.0.5", "10.96.0.1", "443") {
		t.Errorf("no policy denies:\n%s", rules)
	}
}

func TestARangeWithoutOthers(t *testing.T) {
	block := netip.MustParsePrefix("0.0.0.0/0")
	except := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("172.18.0.2/32")}
	left := without(block, except)
	in := func(text string) bool {
		for _, prefix := range left {
			if prefix.Contains(netip.MustParseAddr(text)) {
				return true
			}
		}
		return false
	}
	for _, text := range []string{"10.96.0.1", "10.111.255.255", "169.254.169.254", "172.18.0.2"} {
		if in(text) {
			t.Errorf("%s is left", text)
		}
	}
	for _, text := range []string{"0.0.0.0", "10.95.255.255", "10.112.0.0", "172.18.0.1", "172.18.0.3", "255.255.255.255"} {
		if !in(text) {
			t.Errorf("%s is lost", text)
		}
	}
	if got := without(netip.MustParsePrefix("10.97.0.0/16"), except); got != nil {
		t.Errorf("all of it is excepted, %v is left", got)
	}
}

func TestEndedAndHostNetworkPodsHaveNoAddress(t *testing.T) {
	ended, host := pod("a", "b", "one", "10.244.0.5", nil), pod("a", "b", "one", "172.18.0.2", nil)
	ended.Status.Phase = corev1.PodSucceeded
	host.Spec.HostNetwork = true
	if address(ended).IsValid() || address(host).IsValid() {
		t.Error("an address of nobody")
	}
}

// The kernel takes the rules, in a network namespace of the test's own.
func TestTheKernelTakesTheRules(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, program := range []string{"unshare", "iptables-restore"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	restore := exec.Command("unshare", "--net", "iptables-restore", "--noflush", "--test")
	restore.Stdin = strings.NewReader(ours().compose("one"))
	if err := explain(restore); err != nil {
		t.Fatal(err)
	}
}
