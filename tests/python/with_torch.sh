#!/usr/bin/env bash
# Runs a Python program where PyTorch and transformers are; 77 where they are not.
#
#   with_torch.sh PROGRAM [ARGUMENT…]
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${WEIGHTCAST_PYTHON_VENV:-$root/build/python}/bin/python
if ! "$python" -c 'import torch, transformers' 2>/dev/null; then
  echo "PyTorch and transformers are not there: ./tests/python/run installs them"
  exit 77
fi
exec "$python" -B "$@"
