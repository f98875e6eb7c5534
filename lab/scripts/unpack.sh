#!/bin/bash
# Runs in a container of a node image whose /var/lib/containerd is a volume: unpacks the images there, as containerd itself would before it first starts a container of
# each, and writes what came of it to standard output, as an archive.
set -euo pipefail
content=/var/lib/containerd/io.containerd.content.v1.content/blobs/sha256
exec 3>&1 1>&2

containerd &
containerd=$!
for _ in $(seq 300); do ctr version >/dev/null 2>&1 && break; sleep 0.1; done
ctr version >/dev/null

# A file that a layer deletes becomes a device, which no layer of the pod image can carry: an image with such a layer is left to each node.
deleting=$(for blob in "$content"/*; do
  if tar -tf "$blob" 2>/dev/null | grep -qE '(^|/)\.wh\.'; then basename "$blob"; fi
done)
# Digests that a digest leads to: an index its manifests, a manifest its layers.
reachable() {
  for digest in $({ cat "$content/$1" 2>/dev/null || true; } | head -c 262144 | tr -d '\0' | grep -oE 'sha256:[0-9a-f]{64}' | cut -d: -f2 | sort -u); do
    echo "$digest"
    if [ "$2" -gt 0 ]; then reachable "$digest" $(($2 - 1)); fi
  done
}
for digest in $(ctr --namespace=k8s.io images list | awk 'NR > 1 { print $3 }' | sort -u); do
  # The index leads to manifests, and these to layers.
  if [ -n "$deleting" ] && reachable "${digest#sha256:}" 1 | grep -qFx "$deleting"; then
    echo "$digest has layers that delete files"
    continue
  fi
  ctr --namespace=k8s.io snapshots unpack "$digest"
done

kill "$containerd"
wait "$containerd" || true
cd /var/lib/containerd
tar --numeric-owner --xattrs --xattrs-include='*' -cf - io.containerd.content.v1.content/blobs io.containerd.metadata.v1.bolt io.containerd.snapshotter.v1.overlayfs >&3
