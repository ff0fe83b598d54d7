#!/usr/bin/env bash
# Several trainings of a small model on one GPU at once: N processes, each as benchmarks/training.py.
#   side_by_side.sh BASE N STEPS OUT.jsonl
set -euo pipefail
base=$1 n=$2 steps=$3 out=$4
cd "$(dirname "$0")"
started=$(date +%s.%N)
for i in $(seq "$n"); do
  OMP_NUM_THREADS=2 python3 training.py --base "$base" --label "smollm2, $n at once" --steps "$steps" --only ours --exactly --out "$out" >"$out.$i.log" 2>&1 &
done
wait
python3 -c "import sys,time; s=time.time()-float(sys.argv[1]); print(f'$n trainings of $steps steps: {s:.0f} s with start, {s/$n:.1f} s each')" "$started"
