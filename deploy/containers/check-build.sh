#!/bin/sh
# Builds both images without Docker and without a registry, and runs them: buildah, on a base made by debootstrap that
# stands in for debian:bookworm-slim. Needs root, buildah, debootstrap, a Debian mirror and PyPI; about 5 minutes.
#   deploy/containers/check-build.sh [FOLDER]      FOLDER keeps base and images (default: a temporary one)
set -eu
cd "$(dirname "$0")/../.."
work=${1:-$(mktemp -d)}
mirror=${MIRROR:-http://deb.debian.org/debian}
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
image() { buildah --root "$work/storage" --runroot "$work/run" "$@"; }

if [ ! -e "$work/rootfs/etc/debian_version" ]; then
    debootstrap --variant=minbase --include=ca-certificates bookworm "$work/rootfs" "$mirror" >"$work/debootstrap.log"
    base=$(image from scratch)
    image add -q "$base" "$work/rootfs" / >/dev/null
    image commit -q "$base" docker.io/library/debian:bookworm-slim
fi

for name in guard daemon; do
    # Certificates of this machine, where a proxy has its own.
    image bud -q --pull=never --network host --format docker -v /etc/ssl/certs:/etc/ssl/certs:ro \
        --ignorefile "deploy/containers/$name.Dockerfile.dockerignore" \
        -f "deploy/containers/$name.Dockerfile" -t "kvwatt-$name" .
done

daemon=$(image from --pull-never kvwatt-daemon)
guard=$(image from --pull-never kvwatt-guard)
for one in "$daemon" "$guard"; do
    image run "$one" -- sh -c '! command -v gcc && ! command -v pip' || { echo "build tools are left in $one"; exit 1; }
done
[ "$(image run "$daemon" -- id -u)" = 8484 ]
# vLLM is not there: the daemon says so, stays healthy, and ends in order.
image run -v "$PWD/deploy/containers/kvwatt.toml:/etc/kvwatt/kvwatt.toml:ro" "$daemon" -- sh -c '
    export KVWATT_API__PORT=28484 KVWATT_HEALTH_URL=http://127.0.0.1:28484/healthz
    kvwatt run & for _ in $(seq 20); do sleep 2; ! python /opt/kvwatt/daemon_health.py 2>/dev/null || break; done
    python /opt/kvwatt/daemon_health.py && kill $! && wait $!'
# No NVML here: the guard says so and does not start.
image run "$guard" -- sh -c 'KVWATT_GUARD_GPUS=visible python3 /opt/kvwatt/guard_init.py; [ $? = 2 ]'
image images
