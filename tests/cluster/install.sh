#!/usr/bin/env bash
# SLURM, munge and a database from Debian or Ubuntu, for the cluster tests. No daemon is left running.
set -euo pipefail
PATH=$PATH:/usr/sbin
packages="slurm-wlm slurmdbd munge mariadb-server"
if command -v sbatch >/dev/null && command -v munged >/dev/null && command -v slurmdbd >/dev/null &&
  command -v mariadbd >/dev/null; then
  exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "cluster tests: install $packages (needs root and apt-get); they are skipped now"
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
timeout 120 apt-get update -qq &&
  timeout 300 apt-get install -y -qq --no-install-recommends $packages >/dev/null ||
  echo "cluster tests: apt-get could not install $packages; they are skipped now"
