#!/usr/bin/env bash
# Installs a headless browser for the tests that open a report as a reader does: Debian's or Ubuntu's chromium.
#
#   scripts/install-chromium.sh
#
# Needs apt and root (or sudo that asks for no password); about 100 MB are downloaded. Does nothing if a browser
# is on the PATH already.
set -euo pipefail

fail() { echo "install-chromium: $1" >&2; exit 2; }

for name in chromium chromium-browser google-chrome; do
  if path=$(command -v "$name"); then
    echo "install-chromium: $path is installed"
    exit 0
  fi
done
command -v apt-get >/dev/null || fail "apt-get is missing; install chromium by hand"
root=()
if [ "$(id -u)" != 0 ]; then
  sudo -n true 2>/dev/null || fail "needs root; run: sudo apt-get install --no-install-recommends chromium"
  root=(sudo -n)
fi

install() { "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium >/dev/null; }
echo "install-chromium: installing"
install || { "${root[@]}" apt-get -qq update && install; } || fail "apt could not install chromium"
echo "install-chromium: $(command -v chromium) is installed"
