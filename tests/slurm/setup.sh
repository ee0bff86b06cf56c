#!/usr/bin/env bash
# Starts a Slurm cluster of one node, this machine, for the tests in this folder. Does nothing if Slurm is running.
# Only for machines that are thrown away after the tests: it needs root and Debian's packages, and writes /etc/slurm/slurm.conf.
set -euo pipefail
if sinfo >/dev/null 2>&1; then
  exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "no Slurm: root and apt-get are needed to install it; the tests of tests/slurm are skipped" >&2
  exit 0
fi
if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
fi
host=$(hostname --short)
mkdir -p /etc/slurm /run/munge /var/log/slurm /var/spool/slurmd /var/spool/slurmctld
chown munge:munge /run/munge
# cred_expire: a requeued job waits this many seconds, 120 by default. KillWait: seconds between SIGTERM and SIGKILL.
cat >/etc/slurm/slurm.conf <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=20
InactiveLimit=0
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
MpiDefault=none
SwitchType=switch/none
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
pgrep -x munged >/dev/null || runuser -u munge -- munged
pgrep -x slurmctld >/dev/null || slurmctld
pgrep -x slurmd >/dev/null || slurmd
for _ in $(seq 30); do
  if sinfo --noheader --states=idle,alloc,mix --format=%n 2>/dev/null | grep -q .; then
    exit 0
  fi
  sleep 1
done
echo "Slurm did not start: see /var/log/slurm" >&2
exit 1
