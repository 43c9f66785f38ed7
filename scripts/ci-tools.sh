#!/usr/bin/env bash
# Install the system programs that some tests drive: a browser, PostgreSQL, an SSH server for `ray up`.
# Tests skip with a reason where one is missing, so only CI calls this; it needs root and apt-get.
set -euo pipefail

missing=()
need() { command -v "$1" >/dev/null || [[ -x /usr/sbin/$1 ]] || missing+=("$2"); }
need chromium chromium
need sshd openssh-server
need rsync rsync
need ip iproute2
ls /usr/lib/postgresql/*/bin/initdb /usr/local/bin/initdb >/dev/null 2>&1 || missing+=(postgresql)
[[ ${#missing[@]} -gt 0 ]] || exit 0

echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; }
install 2>/dev/null || { apt-get update -qq && install; }
