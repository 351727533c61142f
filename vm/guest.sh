#!/bin/sh
# The first thing that runs in a guest, as root. Completes what virtme-ng sets up, tells the host that the guest is up,
# runs the command, and tells the host how it ended, so that the host need not wait for a power-off.
# $1: the folder of this run, prepared by `cargo xtask vm run` (config, command.sh).
run=$1
status=/dev/virtio-ports/manycore.status

mounted() {
	grep -q " $1 " /proc/mounts
}

# libbpf reads the kernel's configuration here when there is no /proc/config.gz.
mount -t tmpfs tmpfs /boot && cp "$run/config" "/boot/config-$(uname -r)"
mounted /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug
mounted /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
mounted /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
mounted /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up 2>/dev/null

# Not while booting, where each CPU ticks until there is a clock that idle ones can sleep by.
if grep -qw maxcpus=1 /proc/cmdline; then
	for online in /sys/devices/system/cpu/cpu[1-9]*/online; do
		echo 1 >"$online"
	done
fi

[ -e "$status" ] && echo start >"$status"
sh "$run/command.sh"
code=$?
[ -e "$status" ] && echo "exit $code" >"$status"
exit $code
