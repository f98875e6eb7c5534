#!/bin/bash
# Stands in for Envoy in the image of kind's load balancer. Started as kind starts Envoy (`envoy -c FILE`), it reads the files that kind writes for Envoy
# (`pkg/cluster/internal/loadbalancer` in kind) and has HAProxy do what they say, and again whenever they are replaced. What it does not understand is an
# error, which kind's own loop shows and tries again.
set -euo pipefail
[ "${1:-}" = -c ] && [ -r "${2:-}" ] || { echo "usage: envoy -c FILE" >&2; exit 2; }
bootstrap=$2
config=$(dirname "$bootstrap")/haproxy.cfg

# Every value of a field in a file, one per line.
values() { sed -nE "s/^[- ]*$1: *\"?([^\" ]+)\"? *\$/\1/p" "$2"; }

# The one value that a field must have there.
value() {
    local found
    found=$(values "$1" "$2")
    [ -n "$found" ] && [ "$found" = "${found%%$'\n'*}" ] || { echo "envoy: $2 has not one $1" >&2; return 1; }
    echo "$found"
}

# `0.25s` in whole milliseconds.
milliseconds() {
    local whole part
    [[ $1 =~ ^[0-9]+(\.[0-9]{1,3})?s$ ]] || { echo "envoy: $1 is no duration" >&2; return 1; }
    IFS=. read -r whole part <<<"${1%s}"
    part=${part:-}000
    echo "$((10#$whole * 1000 + 10#${part:0:3}))ms"
}

# What the files say, for HAProxy. As Envoy does it, a connection that cannot be made is not tried elsewhere: until its health check has found out, a server
# that died costs some clients their connection.
translate() {
    local cds=$1 lds=$2 connect check interval fall rise path address port backend hosts ports number
    [ "$(value lb_policy "$cds")" = ROUND_ROBIN ] || { echo "envoy: another lb_policy than ROUND_ROBIN" >&2; return 1; }
    backend=$(value cluster "$lds")
    [ "$(value name <(sed -n '/Cluster$/,/health_checks/p' "$cds"))" = "$backend" ] || { echo "envoy: no cluster $backend in $cds" >&2; return 1; }
    # One to a line, so that each failure ends it.
    address=$(value address "$lds")
    port=$(value port_value "$lds")
    connect=$(milliseconds "$(value connect_timeout "$cds")")
    check=$(milliseconds "$(value timeout "$cds")")
    interval=$(milliseconds "$(value interval "$cds")")
    fall=$(value unhealthy_threshold "$cds")
    rise=$(value healthy_threshold "$cds")
    path=$(value path "$cds")
    mapfile -t hosts < <(values address "$cds")
    mapfile -t ports < <(values port_value "$cds")
    [ "${#hosts[@]}" -gt 0 ] && [ "${#hosts[@]}" = "${#ports[@]}" ] || { echo "envoy: odd endpoints in $cds" >&2; return 1; }
    cat <<CONFIG
global
    maxconn 4096
    nbthread 1
defaults
    mode tcp
    retries 0
    timeout connect $connect
    timeout check $check
    timeout client 1h
    timeout server 1h
resolvers docker
    parse-resolv-conf
    hold valid 1s
    timeout resolve 1s
    timeout retry 1s
frontend listener
    bind $address:$port
    default_backend $backend
backend $backend
    balance roundrobin
    option httpchk
    http-check send meth GET uri $path ver HTTP/1.1 hdr Host $backend
    http-check expect status 200
    default-server check check-ssl verify none inter $interval fall $fall rise $rise resolvers docker resolve-prefer ipv4 init-addr none
CONFIG
    for number in "${!hosts[@]}"; do
        echo "    server ${hosts[number]} ${hosts[number]}:${ports[number]}"
    done
}

cds=$(value path <(sed -n '/cds_config:/,/^ *path:/p' "$bootstrap"))
lds=$(value path <(sed -n '/lds_config:/,/^ *path:/p' "$bootstrap"))
seen= haproxy=
trap '[ -z "$haproxy" ] || kill "$haproxy"; exit 0' TERM INT
while true; do
    now=$(<"$cds")$(<"$lds")
    # Two files are replaced one after the other, and both are empty lists at first.
    if [ "$now" != "$seen" ] && [ -n "$(values cluster "$lds")" ] && [ -n "$(values lb_policy "$cds")" ]; then
        translate "$cds" "$lds" >"$config.new"
        mv "$config.new" "$config"
        seen=$now
        if [ -n "$haproxy" ]; then
            kill -USR2 "$haproxy"
        else
            haproxy -W -db -f "$config" &
            haproxy=$!
        fi
    fi
    [ -z "$haproxy" ] || kill -0 "$haproxy" 2>/dev/null || { echo "envoy: HAProxy has ended" >&2; exit 1; }
    sleep 1
done
