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
  mkdir -p build
  echo "installing ${missing[*]} (log: build/packages.log)" >&2
  {
    "${as_root[@]}" apt-get update -qq &&
      "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
  } >build/packages.log 2>&1 || { cat build/packages.log >&2; return 1; }
}

# build DIRECTORY TARGET [cmake options...]: configures and builds, and says how far it is; what compilers say is in
# DIRECTORY.build.log, and on stderr when something is wrong.
build() {
  local directory=$1 target=$2
  shift 2
  mkdir -p build
  echo "building $target in $directory (minutes the first time; log: $directory.build.log)" >&2
  cmake -S . -B "$directory" -G Ninja -DCMAKE_BUILD_TYPE=Release "$@" >"$directory.configure.log" 2>&1 ||
    { cat "$directory.configure.log" >&2; return 1; }
  NINJA_STATUS='[%f/%t] ' cmake --build "$directory" --target "$target" 2>&1 | tee "$directory.build.log" | say_progress ||
    { cat "$directory.build.log" >&2; return 1; }
}

# Reads what ninja says, "[87/139] Building CXX object ...", and says the numbers: in place on a terminal, elsewhere each tenth and
# after 20 s.
say_progress() {
  local line of total tenth=0 said=$SECONDS
  while IFS= read -r line; do
    [[ $line =~ ^\[([0-9]+)/([0-9]+)\]\  ]] || continue
    of=${BASH_REMATCH[1]} total=${BASH_REMATCH[2]}
    if [ -t 2 ]; then
      printf '\r  %s of %s steps' "$of" "$total" >&2
      [ "$of" -lt "$total" ] || echo >&2
    elif [ $((of * 10 / total)) -gt "$tenth" ] || [ $((SECONDS - said)) -ge 20 ]; then
      tenth=$((of * 10 / total)) said=$SECONDS
      echo "  $of of $total steps" >&2
    fi
  done
}

# Open MPI refuses root unless told twice, and more ranks than cores unless told once.
if [ "$(id -u)" -eq 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
mpirun_here=(mpirun --oversubscribe --bind-to none)
