#!/usr/bin/env bash
# Installs the emulated CPUs of toolchain/benchmark/emulator.py, which show on a PC what a model computes on other CPUs.
#
#   scripts/emulator-setup.sh [DIR]      default: $TOOLCHAIN_EMULATOR, else the toolchain's cache
#
#   DIR/bin     qemu-aarch64 and qemu-x86_64, 10.0 or newer (7.2 of Debian 12 crashes when it imports onnxruntime)
#   DIR/root    a Debian 12 for arm64: the C and C++ libraries and Python 3.11
#   DIR/site    numpy and onnxruntime for that Python; onnxruntime has the version that is installed here
#   DIR/onnxruntime-version
#
# Emulated x86 CPUs need no root: they run the Python and onnxruntime of this machine.
# The script needs apt, dpkg-deb, the Debian archive's keys and pip. It installs nothing on this machine; it downloads
# about 200 MB and keeps 200 MB. It does nothing when DIR is complete and has the right version.
#
#   PYTHON          the Python whose version of onnxruntime is used (default: the checkout's .venv, else python3)
#   DEBIAN_MIRROR   default: the mirror this machine's apt uses
set -euo pipefail

fail() { echo "emulator-setup: $1" >&2; exit 2; }

here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
[ -x "$(command -v "$python")" ] || python=python3
runtime=$("$python" -c 'from importlib.metadata import version; print(version("onnxruntime"))') \
  || fail "$python has no onnxruntime; install the project first, or set PYTHON"

cache=${TOOLCHAIN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/edge-toolchain}
dir=$(realpath -m "${1:-${TOOLCHAIN_EMULATOR:-$cache/emulator}}")
if [ "$(cat "$dir/onnxruntime-version" 2>/dev/null)" = "$runtime" ]; then
  echo "emulator-setup: $dir is complete, with onnxruntime $runtime"
  exit 0
fi

if [ -n "$(ls -A "$dir" 2>/dev/null)" ] && [ ! -x "$dir/bin/qemu-aarch64" ]; then
  fail "$dir is not empty and holds no emulator; choose another folder"
fi
for tool in apt-get dpkg-deb; do
  command -v "$tool" >/dev/null || fail "$tool is missing; run this on a Debian or Ubuntu machine"
done
key=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r "$key" ] || fail "$key is missing; install the package debian-archive-keyring"
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m1 '/debian/\?$' || true)}
[ -n "$mirror" ] || fail "apt knows no Debian mirror; set DEBIAN_MIRROR to one"
host=$(dpkg --print-architecture)

# Everything is built next to DIR and renamed after a successful test, so DIR is either complete or absent.
mkdir -p "$(dirname "$dir")"
new=$(mktemp -d "$dir.XXXXXX")
trap 'rm -rf "$new"' EXIT
mkdir -p "$new"/{bin,root,site} "$new"/work/{lists/partial,archives/partial,debs}
cat > "$new/work/sources.list" <<EOF
deb [arch=$host,arm64 signed-by=$key] $mirror bookworm main
deb [arch=$host signed-by=$key] $mirror bookworm-backports main
EOF
apt() {
  apt-get -qq -o Dir::Etc::SourceList="$new/work/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::State::Lists="$new/work/lists" -o Dir::Cache="$new/work" -o APT::Sandbox::User="$(id -un)" \
    -o APT::Architectures::="$host" -o APT::Architectures::=arm64 "$@"
}

echo "emulator-setup: fetching qemu and an arm64 Debian from $mirror"
apt -o APT::Update::Error-Mode=any update || fail "$mirror does not answer as a Debian mirror; set DEBIAN_MIRROR to one"
packages=()
for name in libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libffi8 \
            python3.11-minimal libpython3.11-minimal libpython3.11-stdlib; do
  packages+=("$name:arm64")
done
(cd "$new/work/debs" && apt download "qemu-user:$host/bookworm-backports" "${packages[@]}")
dpkg-deb --fsys-tarfile "$new"/work/debs/qemu-user_*.deb \
  | tar -x -C "$new/bin" --strip-components=3 ./usr/bin/qemu-aarch64 ./usr/bin/qemu-x86_64
for deb in "$new"/work/debs/*_arm64.deb; do
  case $deb in */qemu-user_*) ;; *) dpkg-deb -x "$deb" "$new/root" ;; esac
done

echo "emulator-setup: fetching onnxruntime $runtime for aarch64"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --target "$new/site" \
  --implementation cp --python-version 3.11 --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
  --platform manylinux2014_aarch64 "onnxruntime==$runtime" numpy

rm -rf "$new/work"
seen=$(PYTHONPATH="$new/site" "$new/bin/qemu-aarch64" -L "$new/root" -cpu cortex-a53 "$new/root/usr/bin/python3.11" \
  -c 'import onnxruntime; print(onnxruntime.__version__)') || fail "the emulated Python does not run"
[ "$seen" = "$runtime" ] || fail "the emulated onnxruntime is $seen instead of $runtime"
echo "$runtime" > "$new/onnxruntime-version"
chmod 755 "$new"
rm -rf "$dir"
mv "$new" "$dir"
echo "emulator-setup: $dir is ready, with onnxruntime $runtime"
