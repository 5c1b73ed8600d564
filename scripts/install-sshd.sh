#!/usr/bin/env bash
# Installs OpenSSH's server and client on a Debian or Ubuntu machine, for the tests of benchmarks over SSH.
#
#   scripts/install-sshd.sh
#
# The system's own SSH service is neither enabled nor started: the tests start and end an sshd of their own, as the
# current user, on a free port of the loopback interface. The script does nothing where sshd is installed. It needs root
# or sudo.
set -euo pipefail

fail() { echo "install-sshd: $1" >&2; exit 2; }

sshd=$(PATH=$PATH:/usr/sbin command -v sshd || true)
if [ -n "$sshd" ] && command -v ssh >/dev/null && command -v ssh-keygen >/dev/null; then
  echo "install-sshd: $sshd is installed already"
  exit 0
fi
command -v apt-get >/dev/null || fail "apt-get is missing; install OpenSSH's server and client another way"
as_root=
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || fail "needs root or sudo"
  as_root=sudo
fi

# The package's scripts start the service unless policy-rc.d exits with 101, "action forbidden" (invoke-rc.d(8)). They
# also enable it at boot, which is undone below.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap '$as_root rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
  $as_root chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get -qq update
$as_root apt-get -qq install --no-install-recommends openssh-server openssh-client >/dev/null
if [ -z "$sshd" ]; then
  $as_root env PATH="$PATH:/usr/sbin" update-rc.d ssh disable >/dev/null
fi
echo "install-sshd: $(PATH=$PATH:/usr/sbin command -v sshd) is installed, its service is not running"
