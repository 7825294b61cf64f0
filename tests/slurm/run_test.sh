#!/usr/bin/env bash
# Runs the batch scripts of slurm/ with a real Slurm: munged, slurmctld and two slurmd on the loopback interface, which live
# as long as this script. Usage: run_test.sh WEIGHTCAST MODELS PROGRAMS — the program, a folder with the checkpoints step0 and
# step181 of a small MoE model, and the folder of weightcast-live-trainer and its like.
# Exit codes: 0 passed · 1 failed · 77 skipped, because a Slurm cannot be started here.
set -euo pipefail

usage='usage: run_test.sh WEIGHTCAST MODELS PROGRAMS'
weightcast=$(realpath "${1:?$usage}")
models=$(realpath "${2:?$usage}")
programs=$(realpath "${3:?$usage}")
source_dir=$models/step0
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
scripts=$(cd "$here/../../slurm" && pwd)
# shellcheck source-path=SCRIPTDIR source=slurm_cluster.sh
source "$here/slurm_cluster.sh"

if ! missing=$(slurm_cluster_missing); then
  {
    echo "######## SKIPPED: the Slurm scripts were NOT tested. Missing on this machine:"
    while IFS= read -r line; do echo "########   $line"; done <<<"$missing"
    echo "######## Debian and Ubuntu: apt-get install munge slurmctld slurmd slurm-client, then run as root."
  } >&2
  exit 77
fi

# Nothing of a surrounding job or of the user's settings may reach the jobs of this test.
unset "${!SLURM_@}" "${!SBATCH_@}" "${!SRUN_@}" "${!WEIGHTCAST_@}" "${!WC_@}" "${!PMIX_@}" "${!OMPI_@}"
export WC_BIN=$weightcast WEIGHTCAST_PROGRESS=never WEIGHTCAST_TIMEOUT=60
# More ranks than cores: let a waiting rank give its core away.
export OMPI_MCA_mpi_yield_when_idle=1
# Containers often forbid one process to read another's memory.
export OMPI_MCA_btl_vader_single_copy_mechanism=none

work=$(mktemp -d /tmp/wc-slurm.XXXXXX)
chmod 755 "$work"  # munged wants everybody to be able to reach its socket
deadline=$((SECONDS + 250))
failures=0

exec 3>&1

finish() {
  local code=$?
  exec >&3 2>&3  # a signal can arrive while the output of a check is redirected
  trap - EXIT
  trap '' INT TERM HUP  # the teardown runs to its end
  if ((code != 0 || failures != 0)); then
    echo "---- output of the jobs, and the daemons' last words:"
    tail -n 40 "$work"/*.out 2>/dev/null || true
    grep -hiE 'error|fatal' "$work"/cluster/log/*.log 2>/dev/null | grep -v spmix_appdir | tail -n 40 || true
    ((code != 0)) || code=1
  fi
  slurm_cluster_stop
  step "the cluster is gone"
  if ((code == 0)); then rm -rf "$work"; else echo "---- left for inspection: $work"; fi
  exit "$code"
}
trap finish EXIT
trap 'exit 143' INT TERM HUP

step() { echo "[$SECONDS s] $*"; }
fail() { echo "FAILED: $*"; failures=$((failures + 1)); }

# expect WHAT COMMAND…: the command succeeds.
expect() {
  local what=$1
  shift
  if "$@" >"$work/expect.log" 2>&1; then echo "  ok: $what"; else fail "$what"; cat "$work/expect.log"; fi
}

# expect_lines FILE COUNT REGEX
expect_lines() {
  local found
  found=$(grep -cE -- "$3" "$1" || true)
  if [[ $found == "$2" ]]; then echo "  ok: $2 × /$3/"; else fail "${1##*/}: /$3/ found $found times, not $2"; fi
}

# Polls until a command succeeds; false after SECONDS, or when the whole test has taken too long.
poll() {
  local limit=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    if ((SECONDS >= limit || SECONDS >= deadline)); then return 1; fi
    sleep 0.1
  done
}

# submit NAME SCRIPT [SBATCH OPTION…] [-- ARGUMENT…]: prints the job id; output in $work/NAME.out. Options on the command
# line win over the script's #SBATCH lines; only what this machine cannot give is changed.
submit() {
  local name=$1 script=$2 options=()
  shift 2
  while (($#)) && [[ $1 != -- ]]; do options+=("$1"); shift; done
  (($# == 0)) || shift
  sbatch --parsable --job-name="$name" --output="$work/$name.out" --cpus-per-task=1 --chdir="$work" \
    ${options[@]+"${options[@]}"} "$scripts/$script" "$@"
}

job_field() { scontrol --oneliner show job "$1" | grep -oE "(^| )$2=[^ ]*" | head -n 1 | cut -d= -f2; }
job_ended() { [[ ! $(job_field "$1" JobState) =~ ^(PENDING|CONFIGURING|RUNNING|COMPLETING|REQUEUED)$ ]]; }

job_requeued() { [[ $(job_field "$1" Restarts) == 1 ]]; }

# expect_job NAME ID SECONDS STATE CODE
expect_job() {
  local state code
  poll "$3" job_ended "$2" || { fail "$1: still $(job_field "$2" JobState) after $3 s"; scancel --full --signal=KILL "$2"; return; }
  state=$(job_field "$2" JobState) code=$(job_field "$2" ExitCode)
  if [[ $state == "$4" && $code == "$5:0" ]]; then
    echo "  ok: $1: $4, exit code $5"
  else
    fail "$1: $state with exit code $code, not $4 with $5:0"
  fi
}

# The shards of a folder are those of one version, they equal the checkpoint, and nothing unfinished lies beside them.
expect_shards() {
  local dir=$1 version=$2 count=$3 files
  expect "${dir##*/}: shards are version $version of the checkpoint" \
    "$weightcast" verify "$dir" --source "$source_dir" --weight-version "$version"
  files=$(find "$dir" -type f -printf '%f\n' 2>/dev/null | sort | tr '\n' ' ') || true
  if [[ $files == "$(for ((i = 0; i < count; ++i)); do printf 'rank-%d.h5 ' "$i"; done)" ]]; then
    echo "  ok: ${dir##*/}: $count files"
  else
    fail "${dir##*/}: expected $count shard files, found: $files"
  fi
}

# The weight version that a shard file names.
shard_version() { "$weightcast" inspect --no-digests "$1" | sed -nE '1s/.*, version ([0-9]+).*/\1/p'; }

# The process of one task of a job.
task_of() {
  local pid
  for pid in $(slurm_cluster_processes); do
    if [[ $(readlink "/proc/$pid/exe") == "$weightcast" ]] &&
      tr '\0' '\n' <"/proc/$pid/environ" | grep -qx "SLURM_JOB_ID=$1"; then
      echo "$pid"
      return
    fi
  done
}

state_of() { sed -n "s/^$2=//p" "$1"; }

step "starting a cluster of two nodes"
slurm_cluster_start "$work/cluster" 2 16
sinfo --Node --noheader --format='  %N %T %c CPUs'

# ---- a loop that Slurm itself warns of its time limit; it runs beside the tests below, which need the time anyway --------
# Slurm looks at time limits twice a minute, so of a limit of one minute the warning comes within the first half.
step "rl-loop.sbatch: warned by Slurm before its time limit (in the background)"
link_checkpoint="ln -sfn '$source_dir' \"\$CHECKPOINT\""
warned=$(TRAIN_COMMAND="$link_checkpoint" ITERATIONS=100000 CHECKPOINTS=checkpoints-warned WC_STATE=warned.state \
  WEIGHTCAST_SINK=hdf5:warned WEIGHTCAST_INFERENCE=tp=2,ep=2 submit warned rl-loop.sbatch --time=1 --signal=B:USR1@50)

step "sync.sbatch: one node; a layout given as an allocation takes the place of the script's own"
export WEIGHTCAST_SOURCE=$source_dir
job=$(WEIGHTCAST_SINK=hdf5:one-node WEIGHTCAST_WEIGHT_VERSION=7 WEIGHTCAST_INFERENCE_ALLOC=sglang:t2e2 submit one-node sync.sbatch)
expect_job one-node "$job" 60 COMPLETED 0
expect_shards "$work/one-node" 7 2

step "sync.sbatch: two nodes, two trainers, four inference ranks; options behind the script win over the environment"
# Open MPI keys its shared memory by host, and both nodes are this host: let them talk over TCP as two hosts would.
job=$(WEIGHTCAST_SINK=hdf5:wrong OMPI_MCA_btl=self,tcp OMPI_MCA_btl_tcp_if_include=lo \
  submit two-nodes sync.sbatch --nodes=2 --ntasks-per-node=3 -- --source "$source_dir" --trainers 2 \
  --inference tp=2,ep=2,replicas=2 --sink hdf5:two-nodes --weight-version 8)
expect_job two-nodes "$job" 60 COMPLETED 0
expect_shards "$work/two-nodes" 8 4
expect "no sink of the environment" test ! -e "$work/wrong"

step "sync.sbatch: the exit code and the one line of an error"
job=$(WEIGHTCAST_SOURCE=$work/does-not-exist submit bad-source sync.sbatch)
expect_job bad-source "$job" 60 FAILED 74
expect_lines "$work/bad-source.out" 1 '^weightcast: error: '
job=$(submit bad-count sync.sbatch --ntasks-per-node=4)
expect_job bad-count "$job" 60 FAILED 64
expect_lines "$work/bad-count.out" 1 '^weightcast: error: '

step "srun --mpi=none: one line that names the remedy"
code=0
srun --mpi=none --ntasks=3 "$weightcast" sync --source "$source_dir" --inference tp=2,ep=2 --sink hdf5:"$work/none" \
  >"$work/mpi-none.out" 2>&1 || code=$?
expect "exit code 64" test "$code" == 64
expect_lines "$work/mpi-none.out" 1 '^weightcast: error: .*--mpi=pmix'
expect_lines "$work/mpi-none.out" 0 'MPI_Init|OPAL|PMIX ERROR'
expect "no shards" test ! -e "$work/none"

step "sync.sbatch: USR1 between the updates of a long session"
sources=()
for ((i = 0; i < 2000; ++i)); do sources+=(--source "$source_dir"); done
job=$(WEIGHTCAST_SINK=hdf5:stopped WEIGHTCAST_WEIGHT_VERSION=100 submit stopped sync.sbatch -- "${sources[@]}")
expect "the first update arrives" poll 60 test -e "$work/stopped/rank-0.h5"
sleep 1
scancel --signal=USR1 "$job"
expect_job stopped "$job" 30 FAILED 75
expect_lines "$work/stopped.out" 1 '^weightcast: error: '
version=$(shard_version "$work/stopped/rank-0.h5")
expect "stopped after the first and before the last update: version $version" test "$version" -ge 100 -a "$version" -lt 2099
expect_shards "$work/stopped" "$version" 2

step "sync.sbatch: a rank that dies ends the job at once, and not as a stop by signal"
job=$(WEIGHTCAST_SINK=hdf5:dead submit dead sync.sbatch -- "${sources[@]}")
expect "the first update arrives" poll 60 test -e "$work/dead/rank-0.h5"
victim=$(task_of "$job")
expect "task $victim is killed" kill -KILL "$victim"
expect_job dead "$job" 20 FAILED 137
expect_lines "$work/dead.out" 0 'stopped by'

# Stands for a program of which only rank 1 comes up; PARTIAL says what the other tasks do meanwhile.
cat >"$work/partial" <<'SCRIPT'
#!/usr/bin/env bash
[[ $SLURM_PROCID == 1 ]] && exec "$REAL_WEIGHTCAST" "$@"
eval "$PARTIAL"
SCRIPT
chmod +x "$work/partial"
export REAL_WEIGHTCAST=$weightcast

step "sync.sbatch: ranks that die before MPI_Init do not leave the others waiting"
job=$(WC_BIN=$work/partial PARTIAL='exit 127' SLURM_WAIT=2 WEIGHTCAST_SINK=hdf5:partial-shards submit partial sync.sbatch)
poll 30 job_ended "$job" || fail "partial: the job hangs"
expect "partial: FAILED, not 0 and not 75: $(job_field "$job" ExitCode)" \
  grep -qxE 'FAILED (127|137):0' <<<"$(job_field "$job" JobState) $(job_field "$job" ExitCode)"
expect "no shards" test ! -e "$work/partial-shards/rank-0.h5"

step "rl-loop.sbatch: a signal that meets a step half started"
# shellcheck disable=SC2016  # for the tasks to expand
job=$(WC_BIN=$work/partial PARTIAL='touch half.$SLURM_PROCID; exec sleep 100' SLURM_WAIT=2 TRAIN_COMMAND="$link_checkpoint" \
  CHECKPOINTS=checkpoints-half WC_STATE=half.state WEIGHTCAST_SINK=hdf5:half submit half rl-loop.sbatch)
expect "the step begins" poll 30 test -e "$work/half.0" -a -e "$work/half.2"
sleep 1  # rank 1 is in MPI_Init by now
scancel --batch --signal=USR1 "$job"
expect_job half "$job" 30 FAILED 75
expect "the checkpoint counts, the update does not" test "$(tr '\n' ' ' <"$work/half.state")" == "trained=1 updated=0 finished=0 "
expect "no shards" test ! -e "$work/half/rank-0.h5"

# Stands for a program that fails by itself after a stop was asked for.
cat >"$work/failing" <<'SCRIPT'
#!/usr/bin/env bash
trap '' USR1
touch "failing.$SLURM_PROCID"
until [[ -e failing.go ]]; do sleep 0.05; done
exit 74
SCRIPT
chmod +x "$work/failing"

step "rl-loop.sbatch: an update that fails while a stop is asked for is a failure, and not requeued"
job=$(WC_BIN=$work/failing TRAIN_COMMAND="$link_checkpoint" CHECKPOINTS=checkpoints-failing WC_STATE=failing.state WC_REQUEUE=1 \
  submit failing rl-loop.sbatch)
expect "the update begins" poll 30 test -e "$work/failing.0" -a -e "$work/failing.1" -a -e "$work/failing.2"
scancel --batch --signal=USR1 "$job"
sleep 0.5
touch "$work/failing.go"
expect_job failing "$job" 30 FAILED 74
expect_lines "$work/failing.out" 1 'iteration 1: the update failed with exit code 74'
expect_lines "$work/failing.out" 0 'stopped by a signal|back into the queue'

step "rl-loop.sbatch: stopped in a training, requeued, and finished"
# The second training waits until it has been told to go on, so that the signal certainly meets it.
job=$(TRAIN_COMMAND="$link_checkpoint; echo \$ITERATION >>requeued.trained
    if ((ITERATION == 2)); then until [[ -e requeued.go ]]; do sleep 0.05; done; fi" \
  INFER_COMMAND="'$weightcast' verify requeued --source '$source_dir' --weight-version \$ITERATION" \
  ITERATIONS=3 CHECKPOINTS=checkpoints-requeued WC_STATE=requeued.state WC_REQUEUE=1 WEIGHTCAST_SINK=hdf5:requeued \
  submit requeued rl-loop.sbatch)
expect "the second training begins" poll 60 grep -qx 2 "$work/requeued.trained"
scancel --batch --signal=USR1 "$job"
sleep 0.3
touch "$work/requeued.go"
expect "stopped after the training of iteration 2" poll 20 grep -q 'iteration 1 of 3 is finished (trained 2, updated 1' "$work/requeued.out"
expect "the job goes back into the queue" poll 20 job_requeued "$job"
expect_job requeued "$job" 60 COMPLETED 0
expect "every iteration was trained once" test "$(tr '\n' ' ' <"$work/requeued.trained")" == "1 2 3 "
expect_lines "$work/requeued.out" 1 'going on after iteration 1'
expect "state: 3 iterations finished" test "$(state_of "$work/requeued.state" finished)" == 3
expect_shards "$work/requeued" 3 2

step "rl-loop.sbatch: a training that fails"
job=$(TRAIN_COMMAND='exit 9' WC_STATE=broken.state WEIGHTCAST_SINK=hdf5:broken submit broken rl-loop.sbatch)
expect_job broken "$job" 30 FAILED 9
expect_lines "$work/broken.out" 1 'iteration 1: TRAIN_COMMAND failed with exit code 9'

# ---- live ----------------------------------------------------------------------------------------------------------------

# A trainer that goes on behind the last version that was read, for ever in the first start and for four versions in the next
# one, and an engine of two ranks that says something, over and over. Versions have the weights of step 0 where they are even,
# else those of step 181.
export PROGRAMS=$programs MODELS=$models
# shellcheck disable=SC2016  # for the job to expand
live_trainer='first=$(($(grep -c "^offered [0-9]* 0" $NAME.trainer) + 1))
  exec srun --ntasks=1 $PROGRAMS/weightcast-live-trainer --folder "$WEIGHTS" --checkpoint $MODELS/step0 \
    --checkpoint $MODELS/step181 --first $first --versions $((SLURM_RESTART_COUNT ? 4 : 1000000)) >>$NAME.trainer'
# shellcheck disable=SC2016
live_engine='exec srun --mpi=pmix --ntasks=2 $PROGRAMS/weightcast-live-engine --folder "$WEIGHTS" --shards cut0 --tokens 8 \
  --config $MODELS/step0/config.json --reference $MODELS/step0/reference.safetensors >>$NAME.engine'

# submit_live NAME [SBATCH OPTION…]
submit_live() {
  : >"$work/$1.trainer"
  NAME=$1 TRAINER_COMMAND=${TRAINER_COMMAND-$live_trainer} ENGINE_COMMAND=${ENGINE_COMMAND-$live_engine} \
    WEIGHTCAST_MODEL=$models/step0 submit "$1" rl-loop.sbatch "${@:2}"
}
versions_read() { grep -c '^offered [0-9]* 0' "$work/$1.trainer"; }
has_read() { (($(versions_read "$1") >= $2)); }
# What these jobs have in memory now (other files of the folder come and go), and whether none of it is left. Other processes have memory of such names, too.
note_memory() { sed -nE 's/.*"control": "([^"]*)control".*/\1/p' "$work"/weights/*/{trainer,engine}-*.json >>"$work/memory"; }
no_memory_is_left() {
  local stem
  while read -r stem; do [[ -z $(compgen -G "/dev/shm$stem*") ]] || return 1; done <"$work/memory"
}

# What an engine says of the weights of a step.
text_of() {
  "$programs/weightcast-engine-cut" --checkpoint "$models/step$1" --out "$work/cut$1" --tp 2 --ep 2 --replicas 1 \
    --moe-layout triton >&2
  srun --mpi=pmix --ntasks=2 "$programs/weightcast-engine" --shards "$work/cut$1" --config "$models/step$1/config.json" \
    --reference "$models/step$1/reference.safetensors" --generate 8 | sed -n 's/^replica 0, version 0: //p'
}

# Every text of an engine is that of its version, and it has said one of each version from 1 to LAST: expect_texts NAME LAST
expect_texts() {
  local wrong
  wrong=$(awk -v even="$even_text" -v odd="$odd_text" -v last="$2" '
    /^version / {
      version = $2 + 0
      said = substr($0, index($0, ": ") + 2)
      if (said != (version % 2 ? odd : even)) print
      seen[version] = 1
    }
    END { for (version = 1; version <= last; ++version) if (!seen[version]) print "nothing of version " version }' \
    "$work/$1.engine")
  if [[ -z $wrong ]]; then echo "  ok: $1: true texts of versions 1 to $2"; else fail "$1: $wrong"; fi
}

step "rl-loop.sbatch: live, stopped between two versions, requeued, and finished"
even_text=$(text_of 0)
odd_text=$(text_of 181)
expect "the two steps say something, and not the same" test -n "$even_text" -a -n "$odd_text" -a "$even_text" != "$odd_text"
if ((slurm_cluster_hosts)); then
  # The trainer on the first host, the engine on the second one.
  job=$(WC_REQUEUE=1 ENGINE_COMMAND=${live_engine/srun/srun --nodes=1 --relative=1} OMPI_MCA_btl=self,tcp \
    OMPI_MCA_btl_tcp_if_include=lo submit_live live --nodes=2 --ntasks-per-node=2)
else
  job=$(WC_REQUEUE=1 submit_live live)
fi
expect "some versions are brought" poll 60 has_read live 3
note_memory
scancel --batch --signal=USR1 "$job"
expect "the job goes back into the queue" poll 60 job_requeued "$job"
before=$(versions_read live)
expect_job live "$job" 60 COMPLETED 0
expect_lines "$work/live.out" 1 'stopped by a signal'
expect_lines "$work/live.out" 1 'TRAINER_COMMAND has ended; the loop is done'
expect "the next start brought four versions more" test "$(versions_read live)" == $((before + 4))
expect_texts live $((before + 4))
expect "each start had its folder" test -d "$work/weights/$job.0" -a -d "$work/weights/$job.1"

step "rl-loop.sbatch: live, an engine that dies, a layout that is wrong, commands that end"
job=$(submit_live dead-engine)
expect "a version is brought" poll 60 has_read dead-engine 1
note_memory
for victim in $(slurm_cluster_processes); do
  [[ $(readlink "/proc/$victim/exe") != "$programs/weightcast-live-engine" ]] || break
done
expect "engine process $victim is killed" kill -KILL "$victim"
expect_job dead-engine "$job" 60 FAILED 137
expect_lines "$work/dead-engine.out" 1 'ENGINE_COMMAND failed with exit code 137'
job=$(WEIGHTCAST_INFERENCE=tp=3 submit_live wrong-layout)
expect_job wrong-layout "$job" 60 FAILED 64
expect_lines "$work/wrong-layout.out" 1 '^weightcast: error: '
expect_lines "$work/wrong-layout.out" 1 'the server failed with exit code 64'
job=$(TRAINER_COMMAND='exit 9' ENGINE_COMMAND='srun --ntasks=1 sleep 100' submit_live broken-trainer)
expect_job broken-trainer "$job" 30 FAILED 9
job=$(TRAINER_COMMAND='srun --ntasks=1 sleep 100' ENGINE_COMMAND='exit 0' submit_live ended-engine)
expect_job ended-engine "$job" 30 FAILED 74
expect_lines "$work/ended-engine.out" 1 'ENGINE_COMMAND has ended before TRAINER_COMMAND'
job=$(ENGINE_COMMAND='' submit_live half-named)
expect_job half-named "$job" 30 FAILED 64

step "rl-loop.sbatch: live, stopped before anything has published"
job=$(TRAINER_COMMAND='touch waiting; srun --ntasks=1 sleep 100' ENGINE_COMMAND='srun --ntasks=1 sleep 100' submit_live waiting)
expect "the commands begin" poll 30 test -e "$work/waiting"
scancel --batch --signal=USR1 "$job"
expect_job waiting "$job" 60 FAILED 75
expect "six exporters are known" test "$(wc -l <"$work/memory")" == 6
expect "nothing is left in memory" no_memory_is_left

step "rl-loop.sbatch: the loop that Slurm warned"
expect_job warned "$warned" 90 FAILED 75
expect_lines "$work/warned.out" 1 'stopped by a signal'
finished=$(state_of "$work/warned.state" finished)
version=$(shard_version "$work/warned/rank-0.h5")
expect "some iterations were finished: $finished" test "$finished" -ge 1
# The signal may come between the commit of an update and the end of its step; the next job then repeats that update.
expect "the shards are at most one version ahead: $version" test "$version" == "$finished" -o "$version" == $((finished + 1))
expect_shards "$work/warned" "$version" 2

if ((failures)); then
  echo "[$SECONDS s] $failures checks FAILED"
  exit 1
fi
step "passed"
