#!/bin/sh
# Install Prometheus and Alertmanager from Debian's packages, for tests: neither is started, now or at boot.
set -eu
missing=
for program in prometheus promtool prometheus-alertmanager amtool; do
    command -v $program >/dev/null || missing="$missing $program"
done
if [ -z "$missing" ]; then
    echo "Prometheus and Alertmanager are here already."
    exit 0
fi
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then # Debian starts what it installs, unless a policy says no
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
fi
apt-get update -qq
apt-get install -y --no-install-recommends prometheus prometheus-alertmanager
if command -v systemctl >/dev/null 2>&1; then
    systemctl disable prometheus prometheus-alertmanager prometheus-node-exporter >/dev/null 2>&1 || true
fi
