#!/bin/sh
# Runs a command with a TMPDIR of its own, which is gone afterwards: two mpiruns that share the folder of their sessions end
# each other's. The path is short, because names of sockets in it may have 107 characters.
#
#   own_tmpdir.sh COMMAND [ARGUMENT…]
TMPDIR=$(mktemp -d /tmp/weightcast-XXXXXX) || exit 1
export TMPDIR
# So that what killed ranks share goes with it, too.
export OMPI_MCA_btl_vader_backing_directory="$TMPDIR"
trap 'rm -rf "$TMPDIR"' EXIT
trap 'exit 143' HUP INT TERM
"$@"
