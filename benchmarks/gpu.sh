#!/usr/bin/env bash
# The GPU benchmarks one after another, the records in OUT.jsonl; what fails does not stop the rest.
#   gpu.sh MODELS OUT.jsonl [PART...]     parts: generation activations training scale, all by default
# MODELS gets both models, 15 GB. LIMIT (900): the most seconds a script may take. PYTHON: which Python.
set -u
cd "$(dirname "$(realpath "$0")")"
models=$(realpath -m "${1:?usage: gpu.sh MODELS OUT.jsonl [PART...]}")
out=$(realpath -m "${2:?usage: gpu.sh MODELS OUT.jsonl [PART...]}")
shift 2
[ $# -gt 0 ] || set -- generation activations training scale
large=(--base "$models/qwen2.5-7b" --label "qwen2.5-7b shape" --out "$out")
small=(--base "$models/smollm2" --label "SmolLM2-135M" --out "$out")
failed=0

try() {
  local started=$SECONDS
  timeout "${LIMIT:-900}" "${PYTHON:-python}" "$@"
  local status=$?
  echo "[$((SECONDS - started)) s, exit $status] $*" >&2
  [ $status = 0 ] || failed=1
}

for shape in qwen2.5-7b smollm2; do
  [ -e "$models/$shape/model.json" ] || try make_model.py --shape "$shape" --base "$models/$shape"
done
for part in "$@"; do
  case $part in
    generation)
      try generation.py "${large[@]}" --chains 2 --rank 64 --memory 0.55 --agreement
      try generation.py "${small[@]}" --chains 2 --rank 64 --memory 0.55 --agreement
      ;;
    activations)
      try activations.py "${large[@]}" --single 48
      try activations.py "${small[@]}" --single 48 --layers 7 15 21 22 29
      ;;
    training)
      try training.py "${large[@]}" --plain-steps 30 \
        --only ours "ours, not recorded, PEFT's layers" "plain TRL, batch 16"
      try training.py "${small[@]}" --plain-steps 60 \
        --only ours "ours, not recorded, PEFT's layers" "plain TRL, batch 16"
      try agreement.py "${small[@]}"
      ;;
    scale)
      for rows in 400 1600 6400; do
        try training.py "${small[@]}" --steps $((rows / 16)) --only ours
      done
      try generation.py "${small[@]}" --chains 0 --many 40
      try generation.py "${small[@]}" --chains 1 --merged
      try generation.py "${large[@]}" --chains 1 --merged
      ;;
    *)
      echo "gpu.sh: there is no part \"$part\": generation, activations, training or scale" >&2
      exit 2
      ;;
  esac
done
exit $failed
