#!/bin/sh
# First process of a machine of its own: namespaces made by unshare, copies over whatever is written to (/etc, /var),
# and then systemd itself. Nothing of it is seen outside, and all of it is gone when it ends.
# Arguments: an empty folder to mount on; the environment that has kvwatt; the interpreter's folder.
set -eu
place=$1 environment=$2 interpreter=$3
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs "$place"
for name in etc var opt usr/lib/sysusers.d usr/lib/tmpfiles.d; do
    mkdir -p "$place/$name" "$place/work/$name"
    mount -t overlay overlay -o "lowerdir=/$name,upperdir=$place/$name,workdir=$place/work/$name" "/$name"
done
mount -t tmpfs -o mode=0755 tmpfs /run
# Targets alone: what a machine starts besides (udev, sysctl, mounts) is none of our business here.
mkdir "$place/units"
cp /lib/systemd/system/*.target "$place/units/"
mount --bind "$place/units" /lib/systemd/system
mount -t tmpfs tmpfs /lib/systemd/system-generators
rm -rf /etc/systemd/system/*
mkdir -p /opt/kvwatt
mount --bind "$environment" /opt/kvwatt
# An interpreter in root's home is out of the daemon's reach: show that folder, and nothing else of the home.
case $interpreter in
    /root/*)
        mkdir "$place/interpreter"
        mount --bind "$interpreter" "$place/interpreter"
        mount -t tmpfs -o mode=0755 tmpfs /root
        mkdir -p "$interpreter"
        mount --bind "$place/interpreter" "$interpreter" ;;
esac
export container=other
exec /lib/systemd/systemd --system --unit=basic.target --log-target=console --show-status=no
