#!/usr/bin/env bash
# The client library is loaded into images with an older C library and another C++ library than this machine's: it needs
# libc alone, of no version above 2.34, and exports its own functions alone.
#
#   needs_libc_alone.sh LIBRARY
set -euo pipefail
needed=$(objdump -p "$1" | sed -n 's/^ *NEEDED *//p' | grep -v '^ld-linux')  # and the loader, for variables of threads
[ "$needed" = libc.so.6 ] || { echo "needs $needed"; exit 1; }
newest=$(objdump -T "$1" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1)
[ "$(printf '%s\n' "$newest" GLIBC_2.34 | sort -V | tail -1)" = GLIBC_2.34 ] || { echo "needs $newest"; exit 1; }
others=$(objdump -T "$1" | awk '/ \.text/ { print $NF }' | grep -v '^weightcast_' || true)
[ -z "$others" ] || { echo "exports $others"; exit 1; }
