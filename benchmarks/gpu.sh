#!/usr/bin/env bash
# Runs the GPU benchmarks in turn and writes records to OUT.jsonl; a failure does not stop the others.
#   gpu.sh MODELS OUT.jsonl [PART...]     parts: generation activations training last scale, all by default
# MODELS gets both models, 15 GB. SHAPES: which of the two to measure. LIMIT (900): time limit of a script in seconds.
# PYTHON: which Python.
set -u
cd "$(dirname "$(realpath "$0")")"
models=$(realpath -m "${1:?usage: gpu.sh MODELS OUT.jsonl [PART...]}")
out=$(realpath -m "${2:?usage: gpu.sh MODELS OUT.jsonl [PART...]}")
shift 2
[ $# -gt 0 ] || set -- generation activations training last scale
declare -A label=([qwen2.5-7b]="qwen2.5-7b shape" [smollm2]=SmolLM2-135M)
declare -A plain_steps=([qwen2.5-7b]=30 [smollm2]=60)
failed=0

try() {
  local started=$SECONDS
  timeout "${LIMIT:-900}" "${PYTHON:-python}" "$@"
  local status=$?
  echo "[$((SECONDS - started)) s, exit $status] $*" >&2
  [ $status = 0 ] || failed=1
}

# The small model first: the large one uses its tokenizer too.
[ -e "$models/smollm2/model.json" ] || try make_model.py --shape smollm2 --base "$models/smollm2"
[ -e "$models/qwen2.5-7b/model.json" ] ||
  try make_model.py --shape qwen2.5-7b --base "$models/qwen2.5-7b" --tokenizer "$models/smollm2"
for part in "$@"; do
  for shape in ${SHAPES:-qwen2.5-7b smollm2}; do
    with=(--base "$models/$shape" --label "${label[$shape]-}" --out "$out")
    case $part/$shape in
      generation/*) try generation.py "${with[@]}" --chains 2 --rank 64 --memory 0.55 --agreement ;;
      activations/qwen2.5-7b) try activations.py "${with[@]}" --single 48 ;;
      activations/smollm2) try activations.py "${with[@]}" --single 48 --layers 7 15 21 22 29 ;;
      training/*)
        try training.py "${with[@]}" --plain-steps "${plain_steps[$shape]}" \
          --only ours "ours, not recorded, PEFT's layers" "plain TRL, batch 16"
        [ "$shape" = qwen2.5-7b ] || try agreement.py "${with[@]}"
        ;;
      last/qwen2.5-7b) ;;
      last/smollm2) try last_jobs.py "${with[@]}" --threads 8 ;;
      scale/qwen2.5-7b) try generation.py "${with[@]}" --chains 1 --merged ;;
      scale/smollm2)
        for rows in 400 1600 6400; do
          try training.py "${with[@]}" --steps $((rows / 16)) --only ours
        done
        try generation.py "${with[@]}" --chains 0 --many 40
        try generation.py "${with[@]}" --chains 1 --merged
        ;;
      *)
        echo "gpu.sh: there is no part \"$part\" for \"$shape\": parts are generation, activations," \
          "training, last and scale; shapes qwen2.5-7b and smollm2" >&2
        exit 2
        ;;
    esac
  done
done
exit $failed
