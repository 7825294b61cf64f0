#!/usr/bin/env bash
# The product's own shards, read by the test engine: all three versions, sent in one session, must give their reference's
# logits and text for one layout.
#
#   sync_test.sh WEIGHTCAST ENGINE MODEL_DIRECTORY TP EP MOE_LAYOUT FORMAT
set -euo pipefail
weightcast=$1 engine=$2 model=$3 tp=$4 ep=$5 layout=$6 format=$7

run_ranks() { mpirun --oversubscribe --bind-to none -n "$@"; }

shards=$(mktemp -d)
trap 'rm -rf "$shards"' EXIT
steps=(step0 step1 step181)
sources=()
for step in "${steps[@]}"; do sources+=(--source "$model/$step"); done
run_ranks $((2 + tp)) "$weightcast" sync -q "${sources[@]}" --trainers 2 --inference "tp=$tp,ep=$ep" \
  --moe-layout "$layout" --bucket-size 64KiB --sink "$format:$shards/{version}"

for version in 0 1 2; do
  step=${steps[$version]}
  others=()
  for other in "${steps[@]}"; do
    [ "$other" = "$step" ] || others+=(--other "$model/$other/reference.safetensors")
  done
  # The engine's figures are good to 1e-6; ten times that shows every parameter that is one step stale.
  run_ranks "$tp" "$engine" --shards "$shards/$version" --replica 0 --config "$model/$step/config.json" \
    --reference "$model/$step/reference.safetensors" "${others[@]}" --check --tolerance 1e-5
done
