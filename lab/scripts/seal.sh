#!/bin/bash
# Runs in the node of a cluster that kind has just made, and writes to standard output, as an archive, the data of an etcd that holds what every API server writes when it first
# starts, and nothing else: the default roles and their bindings, priority classes and flow schemas. It is a fresh etcd that is filled, so nothing of the rest was ever in it: no
# key, token, account, node, lease or event, and no object that says which cluster it is of.
set -euo pipefail
exec 3>&1 1>&2

# The API server marks the roles and bindings that are its own; kubeadm and the controllers write theirs anew, and would have to compare them with what is there.
kept='(.key | @base64d | test("^/registry/(priorityclasses|flowschemas|prioritylevelconfigurations)/"))'
kept+=' or ((.key | @base64d | test("^/registry/(clusterroles|clusterrolebindings|roles|rolebindings)/")) and $mark)'

pki=/etc/kubernetes/pki
sealed=http://127.0.0.1:12379
# /tmp is mounted without the right to run programs.
work=$(mktemp -d -p /var/lib)
cp "/proc/$(pgrep -xo etcd)/root/usr/local/bin/etcd" "$work/program"

curl -sSf --cacert $pki/etcd/ca.crt --cert $pki/apiserver-etcd-client.crt --key $pki/apiserver-etcd-client.key https://127.0.0.1:2379/v3/kv/range \
  -d "{\"key\": \"$(printf /registry/ | base64)\", \"range_end\": \"$(printf /registry0 | base64)\"}" |
  jq "[.kvs[] | (.value | @base64d | test(\"kubernetes.io/bootstrapping\")) as \$mark | select($kept) | {key, value}]" > "$work/kept.json"

"$work/program" --data-dir "$work/etcd" --listen-client-urls $sealed --advertise-client-urls $sealed --listen-peer-urls http://127.0.0.1:12380 \
  --initial-advertise-peer-urls http://127.0.0.1:12380 --initial-cluster default=http://127.0.0.1:12380 2> "$work/log" &
etcd=$!
for _ in $(seq 100); do curl -sf $sealed/readyz > "$work/ready" && break; sleep 0.1; done
grep -q ok "$work/ready" || { cat "$work/log"; exit 1; }
# A transaction holds at most 128 operations.
jq -c 'range(0; length; 100) as $at | {success: .[$at:$at + 100] | map({requestPut: .})}' "$work/kept.json" | while IFS= read -r put; do
  curl -sSf $sealed/v3/kv/txn -d "$put" > /dev/null
done
wanted=$(jq length "$work/kept.json")
there=$(curl -sSf $sealed/v3/kv/range -d '{"key": "AA==", "range_end": "AA==", "count_only": true}' | jq -r .count)
echo "$there of $wanted objects are sealed"
# Two commands: of two with && between them, the first may fail.
[ "$wanted" -ge 100 ]
[ "$there" = "$wanted" ]
# Gives back what its first file has of free pages.
curl -sSf $sealed/v3/maintenance/defragment -d '{}' > /dev/null
kill $etcd
wait $etcd || true

# etcd claims 64 MB for its log, which an image would carry and every cluster copy. A frame of the log is a multiple of eight bytes, and zeros end it.
rm -f "$work"/etcd/member/wal/*.tmp
for log in "$work"/etcd/member/wal/*.wal; do
  perl -e 'local $/; open F, "+<", $ARGV[0] or die $!; $_ = <F>; s/\0+\z//; truncate F, int((length() + 7) / 8) * 8 + 512 or die $!' "$log"
done
tar -C "$work" --numeric-owner -cf - etcd >&3
rm -r "$work"
