#!/usr/bin/env bash
# Print the container engine to test with, and install Podman where there is none.
set -euo pipefail

for engine in docker podman; do
  if "$engine" info >/dev/null 2>&1; then
    echo "$engine"
    exit
  fi
done

if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
  echo "No container engine: install Docker or Podman, or run this as root on Debian or Ubuntu." >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >&2
# crun, the usual choice, refuses the cgroups of a sandbox; netavark needs iptables to publish a port.
apt-get install -qq -y --no-install-recommends podman buildah runc netavark iptables >&2
podman info >/dev/null
echo podman
