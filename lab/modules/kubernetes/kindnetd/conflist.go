package main

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
)

const (
	cniDirectory = "/etc/cni/net.d"
	conflistName = "10-kindnet.conflist"
	uplink       = "eth0"
)

type object map[string]any

// writeConflist tells containerd how to connect pods of this node. Without pod ranges there is nothing to say yet.
func writeConflist(ranges []string) error {
	if len(ranges) == 0 {
		return nil
	}
	link, err := net.InterfaceByName(uplink)
	if err != nil {
		return err
	}
	content, err := conflist(ranges, link.MTU)
	if err != nil {
		return err
	}
	path := filepath.Join(cniDirectory, conflistName)
	if current, err := os.ReadFile(path); err == nil && bytes.Equal(current, content) {
		return nil
	}
	// containerd watches the directory: it must never see half a file.
	temporary := filepath.Join(cniDirectory, "."+conflistName+".tmp")
	if err := os.WriteFile(temporary, content, 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

func conflist(ranges []string, mtu int) ([]byte, error) {
	var sets [][]object
	var routes []object
	for _, cidr := range ranges {
		sets = append(sets, []object{{"subnet": cidr}})
		everywhere := "0.0.0.0/0"
		if strings.Contains(cidr, ":") {
			everywhere = "::/0"
		}
		routes = append(routes, object{"dst": everywhere})
	}
	return json.MarshalIndent(object{
		"cniVersion": "0.4.0",
		"name":       "kindnet",
		"plugins": []object{
			{
				"type":   "ptp",
				"ipMasq": false,
				"mtu":    mtu,
				"ipam": object{
					"type":    "host-local",
					"dataDir": "/run/cni-ipam-state",
					"routes":  routes,
					"ranges":  sets,
				},
			},
			{"type": "portmap", "capabilities": object{"portMappings": true}},
		},
	}, "", "  ")
}
