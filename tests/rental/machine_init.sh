#!/bin/bash
# The first process of a machine of the tests (namespaces.py): private folders, then sshd.
set -euo pipefail
mount --make-rprivate /
hostname "$MACHINE"
mount -t proc proc /proc

# What has to stay visible may be below a folder that becomes private.
mount -t tmpfs tmpfs /mnt
IFS=: read -ra kept <<<"$KEEP"
for index in "${!kept[@]}"; do
  mkdir -p "/mnt/$index"
  mount --rbind "${kept[$index]}" "/mnt/$index"
done
mount -t tmpfs tmpfs /tmp && chmod 1777 /tmp
mount -t tmpfs -o size=4g tmpfs /dev/shm
mount -t tmpfs -o mode=700 tmpfs /root
mount -t tmpfs tmpfs /run && mkdir -p /run/sshd
for index in "${!kept[@]}"; do
  if [ ! -e "${kept[$index]}" ]; then
    mkdir -p "${kept[$index]}"
    mount --rbind "/mnt/$index" "${kept[$index]}"
  fi
done

export HOME=/root
mkdir -m 700 /root/.ssh
printf '%s\n' "$PUBLIC_KEY" > /root/.ssh/authorized_keys
chmod 600 /root/.ssh/authorized_keys
touch /root/.bashrc /root/.profile
ssh-keygen -q -t ed25519 -N '' -f /run/sshd/key
cat > /run/sshd/config <<C
ListenAddress $PRIVATE_IP:22
ListenAddress $PUBLIC_IP:$PUBLIC_PORT
HostKey /run/sshd/key
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
UseDNS no
PrintMotd no
MaxSessions 50
MaxStartups 50:30:100
C
# Not `exec`: sshd writes over the variables of its process, and those of process 1 are read.
trap 'exit 0' TERM
/usr/sbin/sshd -D -e -f /run/sshd/config &
wait
