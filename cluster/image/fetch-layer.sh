#!/bin/sh
# Fetch the weight files of layer $1 into models/ and compare their digests, while an image is built.
# scripts/weights_plan.py wrote what is to be fetched. The secret of the build goes to the hub only.
set -eu

PLAN=/plan/layer-$1
SECRET=${HUB_TOKEN_FILE:-/run/secrets/hub_token}

fetch() { # CONFIG [CURL'S OPTIONS]: a server that stalls is tried again, and a slow one is not
  config=$1
  shift
  [ ! -s "$config" ] || curl --fail --silent --show-error --location --retry 8 \
    --retry-all-errors --connect-timeout 15 --speed-limit 1024 --speed-time 60 "$@" --config "$config"
}

[ -s "$PLAN.sha256" ] || exit 0 # a layer that is left over
umask 022
mkdir -p models
cd models
# curl would make folders that other users cannot open. What another layer has is not touched, because
# it would be copied into this one.
while read -r _ path; do mkdir -p "$(dirname "$path")"; done <"$PLAN.sha256"
if [ -s "$SECRET" ]; then
  printf 'Authorization: Bearer %s\n' "$(cat "$SECRET")" | fetch "$PLAN.hub" --header @-
else
  fetch "$PLAN.hub"
fi
fetch "$PLAN.elsewhere"
sha256sum --check --quiet "$PLAN.sha256"
