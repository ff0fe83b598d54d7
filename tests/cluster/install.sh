#!/usr/bin/env bash
# SLURM and munge from Debian or Ubuntu, for the cluster tests. No daemon is left running.
set -euo pipefail
if command -v sbatch >/dev/null && command -v munged >/dev/null; then
  exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "cluster tests: install slurm-wlm and munge (needs root and apt-get); they are skipped now"
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
timeout 120 apt-get update -qq &&
  timeout 300 apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null ||
  echo "cluster tests: apt-get could not install slurm-wlm and munge; they are skipped now"
