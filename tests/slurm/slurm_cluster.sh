#!/usr/bin/env bash
# A private Slurm cluster on the loopback interface: a munged, a slurmctld and one slurmd a node, with their own key, ports
# and folders. Nothing outside the folder given to slurm_cluster_start is read or written, and a Slurm that already runs on
# the machine is neither used nor disturbed.
#
#   source slurm_cluster.sh
#   slurm_cluster_missing            # prints what this machine lacks; silent and true when a cluster can start
#   slurm_cluster_start DIR [NODES] [CPUS]
#   sbatch …                         # SLURM_CONF points to the cluster
#   slurm_cluster_stop               # ends jobs and daemons; safe to call twice, or after a start that failed

slurm_cluster_dir=
slurm_cluster_pids=()
slurm_cluster_up=0
slurm_cluster_hosts=0  # 1: each node is a host of its own name, for all that runs there

slurm_cluster_missing() {
  local tool lacking=()
  [[ $(id -u) == 0 ]] || lacking+=("root rights (slurmd starts tasks for users)")
  for tool in munged slurmctld slurmd slurmstepd sbatch srun scancel squeue sinfo scontrol; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null || lacking+=("$tool")
  done
  ((${#lacking[@]} == 0)) && return 0
  printf '%s\n' "${lacking[@]}"
  return 1
}

# Prints COUNT distinct TCP ports on which nobody listens. They lie below the range from which the kernel serves outgoing
# connections (32768 and up), so that no connection takes one between this look and the daemon's bind.
slurm_cluster_free_ports() {
  local count=$1 port
  local -A chosen=()
  while ((${#chosen[@]} < count)); do
    port=$((10000 + (RANDOM * 32768 + RANDOM) % 20000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || chosen[$port]=1
  done
  printf '%s\n' "${!chosen[@]}"
}

# Waits until a command succeeds: slurm_cluster_wait SECONDS WHAT COMMAND…
slurm_cluster_wait() {
  local limit=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    if ((SECONDS >= limit)); then
      echo "slurm cluster: $what did not come up; the end of its log:" >&2
      tail -n 15 "$slurm_cluster_dir"/log/*.log >&2 || true
      return 1
    fi
    sleep 0.1
  done
}

slurm_cluster_nodes_idle() {
  [[ $(sinfo --noheader --Node --states=idle --format=%N | sort -u | wc -l) == "$1" ]]
}

slurm_cluster_start() {
  local dir=$1 nodes=${2:-2} cpus=${3:-16} i ports munge_socket as_host=()
  slurm_cluster_dir=$dir
  slurm_cluster_pids=()
  slurm_cluster_up=0
  PATH=$PATH:/usr/sbin:/sbin
  # munged and slurmd refuse folders that others could write to.
  mkdir -p "$dir"/{munge,state,log}
  chmod 755 "$dir" "$dir"/{munge,state,log}
  mapfile -t ports < <(slurm_cluster_free_ports $((nodes + 1)))
  munge_socket=$dir/munge/socket

  (umask 077 && head -c 128 /dev/urandom >"$dir/munge/key")
  munged --foreground --socket="$munge_socket" --key-file="$dir/munge/key" --pid-file="$dir/munge/pid" \
    --seed-file="$dir/munge/seed" --log-file="$dir/log/munged.log" --num-threads=2 >>"$dir/log/munged.log" 2>&1 &
  slurm_cluster_pids+=($!)

  # The lines that matter in a container: processes are tracked through /proc and nothing is bound or accounted, so no
  # cgroup is touched; config_overrides makes slurmd believe in the CPUs named here, so that more tasks than cores run;
  # NoInAddrAny keeps every daemon off the other interfaces; TmpFS gives each node its own folder for PMIx, whose names would
  # collide in /tmp; a requeued job waits until its old credential has expired, hence cred_expire.
  {
    cat <<CONF
ClusterName=weightcast-test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$munge_socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
TmpFS=$dir/tmp-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
PlugStackConfig=$dir/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_min_interval=10000,batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
MinJobAge=300
KillWait=5
SlurmctldTimeout=60
SlurmdTimeout=60
CONF
    for ((i = 1; i <= nodes; ++i)); do
      echo "NodeName=wc$i NodeHostname=localhost NodeAddr=127.0.0.1 Port=${ports[i]} CPUs=$cpus State=UNKNOWN"
    done
    echo "PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO"
  } >"$dir/slurm.conf"
  # Some containers forbid namespaces; then all nodes have this host's name.
  if unshare --uts --mount true 2>/dev/null; then slurm_cluster_hosts=1; fi
  for ((i = 1; i <= nodes; ++i)); do echo "127.0.0.1 wc$i"; done | cat /etc/hosts - >"$dir/hosts"
  : >"$dir/plugstack.conf"
  : >"$dir/log/slurmctld.log"
  export SLURM_CONF=$dir/slurm.conf

  slurm_cluster_wait 10 munged test -S "$munge_socket" || return 1
  slurmctld -D -c -f "$SLURM_CONF" >>"$dir/log/slurmctld.log" 2>&1 &
  slurm_cluster_pids+=($!)
  for ((i = 1; i <= nodes; ++i)); do
    mkdir -p "$dir"/{spool,tmp}-wc"$i"
    # shellcheck disable=SC2016  # for the shell inside to expand
    ((!slurm_cluster_hosts)) || as_host=(unshare --uts --mount sh -c \
      'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"' sh "wc$i" "$dir/hosts")
    ${as_host[@]+"${as_host[@]}"} slurmd -D -N "wc$i" -f "$SLURM_CONF" >>"$dir/log/slurmd-wc$i.log" 2>&1 &
    slurm_cluster_pids+=($!)
  done
  slurm_cluster_wait 30 "the cluster of $nodes nodes" slurm_cluster_nodes_idle "$nodes" || return 1
  slurm_cluster_up=1
}

# Prints the processes that carry this cluster's configuration in their environment: step daemons and what they started.
slurm_cluster_processes() {
  local entry
  for entry in /proc/[0-9]*; do
    [[ ${entry#/proc/} == "$$" || ${entry#/proc/} == "$BASHPID" ]] && continue
    if tr '\0' '\n' 2>/dev/null <"$entry/environ" | grep -qxF "SLURM_CONF=$slurm_cluster_dir/slurm.conf"; then
      echo "${entry#/proc/}"
    fi
  done
}

slurm_cluster_stop() {
  local pid limit i
  [[ -n $slurm_cluster_dir ]] || return 0
  # Jobs first, while the daemons that can end them are alive.
  if ((slurm_cluster_up)) && [[ -n $(timeout 5 squeue --noheader 2>/dev/null) ]]; then
    timeout 5 scancel --signal=KILL --full --state=RUNNING 2>/dev/null || true
    timeout 5 scancel --state=PENDING 2>/dev/null || true
    limit=$((SECONDS + 8))
    while [[ -n $(timeout 5 squeue --noheader 2>/dev/null) ]] && ((SECONDS < limit)); do sleep 0.2; done
  fi
  # munged, the first that was started, goes last: the others still talk to one another while they end.
  limit=$((SECONDS + 10))
  for ((i = ${#slurm_cluster_pids[@]} - 1; i >= 0; --i)); do
    pid=${slurm_cluster_pids[i]}
    kill -TERM "$pid" 2>/dev/null || true
    while kill -0 "$pid" 2>/dev/null && ((SECONDS < limit)); do sleep 0.05; done
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  # Step daemons are children of init by design, so a broken job can outlive its slurmd; end what is left, one by one.
  for pid in $(slurm_cluster_processes); do kill -KILL "$pid" 2>/dev/null || true; done
  slurm_cluster_pids=()
  slurm_cluster_dir=
}
