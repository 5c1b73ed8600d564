#!/usr/bin/env bash
# Installs a C compiler for arm64 Linux on a Debian or Ubuntu machine, for the tests of the runner in C on emulated
# processors (toolchain/benchmark/native). It does nothing where the compiler is installed. It needs root or sudo.
#
#   scripts/install-cross.sh
set -euo pipefail

fail() { echo "install-cross: $1" >&2; exit 2; }

compiler=aarch64-linux-gnu-gcc
if command -v "$compiler" >/dev/null; then
  echo "install-cross: $(command -v "$compiler") is installed already"
  exit 0
fi
command -v apt-get >/dev/null || fail "apt-get is missing; install $compiler another way"
as_root=
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || fail "needs root or sudo"
  as_root=sudo
fi
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get -qq update
$as_root apt-get -qq install --no-install-recommends gcc-aarch64-linux-gnu libc6-dev-arm64-cross >/dev/null
echo "install-cross: $(command -v "$compiler") is installed"
