#!/usr/bin/env bash
# What compose.yaml says, with plain `docker` commands, where Compose is missing.
#
#   ./up.sh           brings everything up and waits until it is healthy; what is
#                     up with the same settings stays as it is
#   ./up.sh down      takes it down again
#
# Settings: PROJECT (a prefix of names), SGWALL_IMAGE, WEB_IMAGE, DB_IMAGE,
# WEB_PORT (empty: no port of the host leads to the web service).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
fail() { printf 'up.sh: %s\n' "$*" >&2; exit 1; }

project=${PROJECT:-sgwall}
sgwall=${SGWALL_IMAGE:-sgwall}
web_image=${WEB_IMAGE:-docker.io/library/python:3.13-slim}
db_image=${DB_IMAGE:-docker.io/library/postgres:17}
port=${WEB_PORT-8080}
network=${project}_vpc

name() { printf '%s-%s-1' "$project" "$1"; }

# start SERVICE ARGUMENT...: a container of that service, unless one is up that was
# made with the same arguments and, where it is in another's namespace, beside the
# same container.
start() {
    local service=$1 container settings
    shift
    container=$(name "$service")
    settings=$({ printf '%s\n' "$@"; beside "$@"; } | sha256sum | cut -d ' ' -f 1)
    if [ "$(docker inspect --format '{{.State.Running}} {{index .Config.Labels "sgwall.settings"}}' \
        "$container" 2>/dev/null)" = "true $settings" ]; then
        return
    fi
    docker rm --force --volumes "$container" >/dev/null 2>&1 || true
    docker run --detach --restart unless-stopped --name "$container" \
        --label "sgwall.project=$project" --label "sgwall.settings=$settings" "$@" >/dev/null
}

# The container whose namespace the arguments name, by its id and when it started:
# started again, it has another namespace.
beside() {
    local argument
    for argument in "$@"; do
        case $argument in
            container:*) docker inspect --format '{{.Id}} {{.State.StartedAt}}' "${argument#container:}" ;;
        esac
    done
}

# Holds a network namespace, closed from its first moment, for a sidecar and a
# workload that come and go.
pause() {
    local service=$1
    shift
    start "$service-net" --network "$network" --network-alias "$service" --hostname "$service" \
        --cap-drop ALL --cap-add NET_ADMIN --cap-add NET_RAW --security-opt no-new-privileges \
        --read-only --no-healthcheck "$@" "$sgwall" pause
}

# The sidecar. The folder is mounted, not the file: an editor that saves by
# renaming puts another file in its place, which a mounted file would never show.
sidecar() {
    start "$1-groups" --network "container:$(name "$1-net")" \
        --cap-drop ALL --cap-add NET_ADMIN --cap-add NET_RAW --security-opt no-new-privileges \
        --device /dev/net/tun --read-only --tmpfs /run:mode=0755,size=1m \
        --volume "$here:/etc/sgwall:ro" --health-interval 1s --health-start-period 10s \
        "$sgwall" sidecar --rules /etc/sgwall/rules.yaml --group "$1"
}

# Waits until a sidecar says that it enforces.
healthy() {
    local container left=60
    container=$(name "$1-groups")
    until [ "$(docker inspect --format '{{.State.Health.Status}}' "$container")" = healthy ]; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || { docker logs --tail 20 "$container" >&2; fail "$container isn't healthy"; }
        sleep 0.5
    done
}

down() {
    docker ps --all --quiet --filter "label=sgwall.project=$project" | xargs --no-run-if-empty docker rm --force --volumes >/dev/null
    if docker network inspect "$network" >/dev/null 2>&1; then
        docker network rm "$network" >/dev/null
    fi
}

up() {
    docker network inspect "$network" >/dev/null 2>&1 \
        || docker network create --label "sgwall.project=$project" "$network" >/dev/null
    pause web ${port:+--publish "127.0.0.1:$port:8080"}
    pause db
    sidecar web
    sidecar db
    start stranger --network "$network" --network-alias stranger --init \
        --volume "$here/app.py:/app.py:ro" --env PYTHONUNBUFFERED=1 "$web_image" python3 /app.py
    healthy db
    start db --network "container:$(name db-net)" --cap-drop NET_RAW \
        --env POSTGRES_HOST_AUTH_METHOD=trust "$db_image" postgres
    healthy web
    start web --network "container:$(name web-net)" --cap-drop NET_RAW --init \
        --volume "$here/app.py:/app.py:ro" --env PYTHONUNBUFFERED=1 "$web_image" python3 /app.py
}

case "${1:-up}" in
    up) up ;;
    down) down ;;
    -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$here/up.sh" ;;
    *) fail "it is ./up.sh [up|down]" ;;
esac
