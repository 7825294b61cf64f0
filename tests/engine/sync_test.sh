#!/usr/bin/env bash
# The product's own shards, read by the test engine: every checkpoint, one version after the other sent in one session,
# must give its reference's logits, and its text where the reference has one, for one layout.
#
# EXPERT_MAP names the map by which experts sit in the engine's slots; unset: expert e sits in slot e.
#
#   sync_test.sh WEIGHTCAST ENGINE "ENGINE OPTIONS" TP EP MOE_LAYOUT FORMAT CHECKPOINT...
set -euo pipefail
weightcast=$1 engine=$2 layout=$6 format=$7 tp=$4 ep=$5
read -ra options <<< "$3"
checkpoints=("${@:8}")
map=()
[ -z "${EXPERT_MAP:-}" ] || map=(--expert-map "$EXPERT_MAP")

run_ranks() { mpirun --oversubscribe --bind-to none -n "$@"; }

shards=$(mktemp -d)
trap 'rm -rf "$shards"' EXIT
sources=()
for checkpoint in "${checkpoints[@]}"; do sources+=(--source "$checkpoint"); done
run_ranks $((2 + tp)) "$weightcast" sync -q "${sources[@]}" --trainers 2 --inference "tp=$tp,ep=$ep" \
  --moe-layout "$layout" --bucket-size 64KiB "${map[@]}" --sink "$format:$shards/{version}"

for version in "${!checkpoints[@]}"; do
  checkpoint=${checkpoints[$version]}
  others=()
  for other in "${checkpoints[@]}"; do
    [ "$other" = "$checkpoint" ] || others+=(--other "$other/reference.safetensors")
  done
  run_ranks "$tp" "$engine" --shards "$shards/$version" --replica 0 --config "$checkpoint/config.json" \
    --reference "$checkpoint/reference.safetensors" "${others[@]}" --check "${map[@]}" "${options[@]}"
done
