#!/usr/bin/env bash
# Print the container engine to test with. .ci/debian-packages has what Podman needs: not crun, the
# usual choice, which refuses the cgroups of a sandbox; iptables, by which netavark publishes a port.
set -euo pipefail

for engine in docker podman; do
  if "$engine" info >/dev/null 2>&1; then
    echo "$engine"
    exit
  fi
done
echo "No container engine works here: install Docker or Podman." >&2
exit 1
