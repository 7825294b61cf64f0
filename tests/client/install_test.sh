#!/usr/bin/env bash
# What `cmake --install` puts somewhere is all that a program in C needs, through CMake and through pkg-config, also where it
# has been moved since; and it is looked for in the version that is asked for.
#
#   install_test.sh CMAKE BUILD_FOLDER VERSION C_COMPILER
set -euo pipefail
cmake=$1 build=$2 version=$3 compiler=$4
here=$(dirname "$(readlink -f "$0")")
fail() { echo "$*" >&2; exit 1; }

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$cmake" --install "$build" --prefix "$folder/installed" >/dev/null
mv "$folder/installed" "$folder/moved"

# consumer NAME WANTED: configures and builds the program for a version of the package.
consumer() {
  "$cmake" -S "$here/consumer" -B "$folder/$1" -DCMAKE_C_COMPILER="$compiler" -DCMAKE_PREFIX_PATH="$folder/moved" \
    -DCMAKE_FIND_USE_PACKAGE_REGISTRY=OFF -DWEIGHTCAST_WANTED="$2" >"$folder/$1.log" 2>&1 &&
    "$cmake" --build "$folder/$1" >>"$folder/$1.log" 2>&1
}
# says WHAT COMMAND…: the program runs and says of which version the library is, and what it refuses.
says() {
  local said
  said=$("${@:2}") || fail "$1: ends with $?"
  [[ $said == "$version: "?* ]] || fail "$1: says '$said'"
}

consumer own "$version" || fail "find_package: $(cat "$folder/own.log")"
says find_package "$folder/own/consumer"
! consumer next 0.99 || fail "find_package takes $version for 0.99"
grep -q 'compatible with requested version "0.99"' "$folder/next.log" || fail "$(cat "$folder/next.log")"

pc=$(find "$folder/moved" -name weightcast.pc -printf '%h')
read -ra flags <<<"$(PKG_CONFIG_PATH=$pc pkg-config --cflags --libs weightcast)"
[ "$(PKG_CONFIG_PATH=$pc pkg-config --modversion weightcast)" = "$version" ] || fail "pkg-config knows another version"
"$compiler" "$here/consumer/main.c" -o "$folder/by-pkg-config" "${flags[@]}"
says pkg-config env LD_LIBRARY_PATH="$(dirname "$pc")" "$folder/by-pkg-config"

[[ $("$folder/moved/bin/weightcast" --version) == "weightcast $version "* ]] || fail "the program is another one"
