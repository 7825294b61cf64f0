#!/usr/bin/env bash
# Runs a Python program in an environment that ./tests/python/run has made; 77 where it has not.
#
#   with_python.sh torch|vllm|loop|verl|megatron PROGRAM [ARGUMENT…]
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
case $1 in
  torch) environment=${WEIGHTCAST_PYTHON_VENV:-$root/build/python} modules="torch transformers" how=./tests/python/run ;;
  vllm) environment=${WEIGHTCAST_VLLM_VENV:-$root/build/vllm} modules=vllm how="./tests/python/run --vllm" ;;
  loop) environment=${WEIGHTCAST_VLLM_VENV:-$root/build/vllm} modules="vllm h5py" how="./tests/python/run --vllm" ;;
  verl) environment=${WEIGHTCAST_VLLM_VENV:-$root/build/vllm} modules="vllm verl ray" how="./tests/python/run --verl" ;;
  megatron)
    environment=${WEIGHTCAST_MEGATRON_VENV:-$root/build/megatron} modules="megatron.core torch transformers"
    how="./tests/python/run --megatron"
    ;;
esac
shift
look='import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, sys.argv[1:])))'
# Modules are looked for and not loaded, which takes seconds.
if ! "$environment/bin/python" -c "$look" $modules 2>/dev/null; then
  echo "$modules: not there; $how installs what is missing"
  exit 77
fi
exec "$environment/bin/python" -B "$@"
