package main

import (
	"fmt"
	"net"
	"os/exec"
	"strings"
)

const chain = "KIND-MASQ-AGENT"

// ensureMasquerade gives traffic that leaves the pod network the node's own address, once for each IP family.
func ensureMasquerade(podSubnets []*net.IPNet) error {
	families := map[string][]*net.IPNet{}
	for _, subnet := range podSubnets {
		command := "iptables"
		if subnet.IP.To4() == nil {
			command = "ip6tables"
		}
		families[command] = append(families[command], subnet)
	}
	for command, subnets := range families {
		if err := load(command+"-restore", masqueradeRules(subnets)); err != nil {
			return err
		}
		jump := []string{"POSTROUTING", "-m", "addrtype", "!", "--dst-type", "LOCAL", "-j", chain}
		if table(command, append([]string{"-C"}, jump...)) == nil {
			continue
		}
		if err := table(command, append([]string{"-A"}, jump...)); err != nil {
			return err
		}
	}
	return nil
}

// masqueradeRules replaces the chain as a whole, so a restart leaves no rule twice.
func masqueradeRules(podSubnets []*net.IPNet) string {
	var rules strings.Builder
	fmt.Fprintf(&rules, "*nat\n:%s - [0:0]\n", chain)
	for _, subnet := range podSubnets {
		fmt.Fprintf(&rules, "-A %s -d %s -j RETURN\n", chain, subnet)
	}
	fmt.Fprintf(&rules, "-A %s -j MASQUERADE\nCOMMIT\n", chain)
	return rules.String()
}

func load(command, rules string) error {
	restore := exec.Command(command, "--wait", "5", "--noflush")
	restore.Stdin = strings.NewReader(rules)
	return explain(restore)
}

func table(command string, arguments []string) error {
	return explain(exec.Command(command, append([]string{"--wait", "5", "-t", "nat"}, arguments...)...))
}

func explain(command *exec.Cmd) error {
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(command.Args, " "), err, strings.TrimSpace(string(output)))
	}
	return nil
}
