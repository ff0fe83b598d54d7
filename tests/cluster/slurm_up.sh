#!/usr/bin/env bash
# A SLURM cluster on this machine, on loopback, with fake GPUs; needs root, but neither systemd nor cgroups.
#   slurm_up.sh FOLDER [GPUS] [accounting]
# State, logs and pid files go to FOLDER; slurm_down.sh FOLDER ends it. `accounting`: with slurmdbd and a
# database of its own, for sacct.
set -euo pipefail
root=$(realpath -m "$1")
gpus=${2:-2}
accounting=${3:-}
port=13306
host=$(hostname -s)

# Retry a command for some seconds.
await() {
  for _ in $(seq 100); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.1
  done
  echo "slurm_up: gave up waiting for: $*" >&2
  exit 1
}
munge_answers() { munge -n </dev/null | unmunge; }
controller_answers() { scontrol ping | grep -q UP; }
node_is_idle() { sinfo -h -o %T | grep -q idle; }
database_answers() { mariadb-admin --no-defaults --socket="$root/run/db.sock" ping; }
accounting_answers() { sacctmgr -n show cluster; }

for file in slurm.conf gres.conf slurmdbd.conf; do
  [ -e "/etc/slurm/$file" ] || rm -f "/etc/slurm/$file" # a dangling link of a run that was killed
  if [ -e "/etc/slurm/$file" ]; then
    echo "slurm_up: /etc/slurm/$file is there already; this machine has a cluster" >&2
    exit 1
  fi
done
mkdir -p "$root"/{state,spool,log,run}

if ! munge_answers >/dev/null 2>&1; then
  install -d -o munge -g munge -m 755 /run/munge
  install -d -o munge -g munge -m 700 /var/lib/munge /var/log/munge
  if [ ! -s /etc/munge/munge.key ]; then
    (umask 277 && head -c 128 /dev/urandom >/etc/munge/munge.key)
    chown munge:munge /etc/munge/munge.key
  fi
  runuser -u munge -- munged
  await munge_answers
  cp /run/munge/munged.pid "$root/run/munged.pid"
fi

storage="AccountingStorageType=accounting_storage/none"
if [ -n "$accounting" ]; then
  storage="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment"
  mariadb-install-db --no-defaults --user=root --datadir="$root/db" --auth-root-authentication-method=socket \
    --skip-test-db >"$root/log/db-install.log" 2>&1
  mariadbd --no-defaults --user=root --datadir="$root/db" --socket="$root/run/db.sock" \
    --pid-file="$root/run/mariadbd.pid" --bind-address=127.0.0.1 --port=$port \
    --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 >"$root/log/db.log" 2>&1 &
  await database_answers
  mariadb --no-defaults --socket="$root/run/db.sock" -e "
    CREATE DATABASE slurm_acct_db;
    CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY 'test';
    CREATE USER 'slurm'@'localhost' IDENTIFIED BY 'test';
    GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';
    GRANT ALL ON slurm_acct_db.* TO 'slurm'@'localhost'"
  cat >"$root/slurmdbd.conf" <<CONF
AuthType=auth/munge
DbdHost=localhost
DbdAddr=127.0.0.1
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$port
StorageUser=slurm
StoragePass=test
StorageLoc=slurm_acct_db
LogFile=$root/log/slurmdbd.log
PidFile=$root/run/slurmdbd.pid
CONF
  chmod 600 "$root/slurmdbd.conf"
fi

# pgid: the other trackers need cgroups, or lose processes of cancelled jobs. CPUs and memory are overcommitted,
# because jobs here are small but request a lot.
cat >"$root/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
$storage
JobCompType=jobcomp/filetxt
JobCompLoc=$root/log/jobcomp.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SwitchType=switch/none
GresTypes=gpu
ReturnToService=2
StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool
SlurmctldLogFile=$root/log/slurmctld.log
SlurmdLogFile=$root/log/slurmd.log
SlurmctldPidFile=$root/run/slurmctld.pid
SlurmdPidFile=$root/run/slurmd.pid
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
MinJobAge=3600
KillWait=60
InactiveLimit=0
NodeName=$host NodeAddr=127.0.0.1 CPUs=16 RealMemory=500000 Gres=gpu:$gpus State=UNKNOWN
PartitionName=cpu Nodes=$host Default=YES MaxTime=INFINITE State=UP DefMemPerCPU=100
PartitionName=gpu Nodes=$host MaxTime=1-00:00:00 State=UP DefMemPerCPU=100
CONF
for number in $(seq 0 $((gpus - 1))); do
  device="$root/run/gpu$number"  # a null device under another name
  [ -e "$device" ] || mknod "$device" c 1 3
  echo "NodeName=$host Name=gpu File=$device"
done >"$root/gres.conf"

# Not by SLURM_CONF: the plugin's inner srun drops every SLURM_* variable.
mkdir -p /etc/slurm
ln -s "$root/slurm.conf" "$root/gres.conf" /etc/slurm/
unset SLURM_CONF
if [ -n "$accounting" ]; then
  ln -s "$root/slurmdbd.conf" /etc/slurm/
  slurmdbd
  await accounting_answers
  sacctmgr -i add cluster test >/dev/null
  sacctmgr -i add account test Description=test Organization=test >/dev/null
  sacctmgr -i add user root Account=test >/dev/null
fi
slurmctld
await controller_answers
slurmd -N "$host"
await node_is_idle
sinfo -N -o '%N %P %T %c %m %G'
