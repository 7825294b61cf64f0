# Sourced by ./launch/demo, ./tests/run and the checks: makes sure that what a build needs is installed.

# Debian packages of the program and of its tests.
build_packages=(g++ cmake ninja-build pkg-config libopenmpi-dev openmpi-bin libhdf5-dev libboost-program-options-dev
  nlohmann-json3-dev libfmt-dev libxxhash-dev libpcre2-dev libgtest-dev)
test_packages=(slurmctld slurmd slurm-client munge)

# require_packages NAME...: installs the missing ones when that is permitted, otherwise names them and fails.
require_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! sudo -n true 2>/dev/null; then
      echo "missing packages; install them and run this again: apt-get install ${missing[*]}" >&2
      return 1
    fi
    as_root=(sudo)
  fi
  echo "installing ${missing[*]}" >&2
  "${as_root[@]}" apt-get update -qq >&2
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

# build DIRECTORY TARGET [cmake options...]: configures and builds, quietly unless something is wrong.
build() {
  local directory=$1 target=$2
  shift 2
  mkdir -p build
  cmake -S . -B "$directory" -G Ninja -DCMAKE_BUILD_TYPE=Release -DWEIGHTCAST_WERROR=OFF "$@" >"$directory.configure.log" 2>&1 ||
    { cat "$directory.configure.log" >&2; return 1; }
  cmake --build "$directory" --target "$target" >"$directory.build.log" 2>&1 ||
    { cat "$directory.build.log" >&2; return 1; }
}

# Open MPI refuses root unless told twice, and more ranks than cores unless told once.
if [ "$(id -u)" -eq 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
mpirun_here=(mpirun --oversubscribe --bind-to none)
