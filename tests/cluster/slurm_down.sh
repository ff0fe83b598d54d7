#!/usr/bin/env bash
# End what slurm_up.sh FOLDER started, by its pid files, and take its links out of /etc/slurm.
set -uo pipefail
root=$(realpath -m "$1")
if [ "$(realpath -m /etc/slurm/slurm.conf)" = "$root/slurm.conf" ] && scontrol ping 2>/dev/null | grep -q UP; then
  scancel --user=root 2>/dev/null
  for _ in $(seq 50); do
    [ -z "$(squeue -h 2>/dev/null)" ] && break
    sleep 0.2
  done
fi
for name in slurmd slurmctld slurmdbd mariadbd munged; do
  file="$root/run/$name.pid"
  [ -s "$file" ] || continue
  pid=$(cat "$file")
  kill "$pid" 2>/dev/null
  for _ in $(seq 100); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  kill -9 "$pid" 2>/dev/null
  rm -f "$file"
done
for name in slurm.conf gres.conf slurmdbd.conf; do
  if [ "$(realpath -m "/etc/slurm/$name")" = "$root/$name" ]; then rm -f "/etc/slurm/$name"; fi
done
exit 0
