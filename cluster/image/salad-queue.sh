#!/usr/bin/env bash
# The application and Salad's HTTP job queue worker in one container: `salad-queue [CONFIG]`.
#
# The queue worker receives jobs from Salad and posts them to the application of this container. When
# one of the two ends, the other one is stopped, and the container ends with the status of the first.
#
# A signal goes to the application, which finishes its job. The queue worker is stopped after that,
# because a signal makes it abandon the request that it waits for, and the result that it sends.
set -uo pipefail

readonly QUEUE_WORKER=${SALAD_QUEUE_WORKER:-/usr/local/bin/salad-http-job-queue-worker}
readonly REPORT_S=${SALAD_QUEUE_REPORT_S:-5} # guess: the last result reaches Salad within this time
readonly END_S=10                            # then it is killed

if [[ ! -x $QUEUE_WORKER ]]; then
  echo "salad-queue: there is no $QUEUE_WORKER in this image: build it with the build argument" \
    "SALAD_QUEUE_SHA256 (docs/images.md)" >&2
  exit 2
fi

app='' is_stopping=''
stop_application() {
  is_stopping=1
  [[ -z $app ]] || kill -TERM "$app" 2>/dev/null
}
trap stop_application TERM INT

lipsync serve "$@" &
app=$!
[[ -z $is_stopping ]] || stop_application # the signal came before there was an application
"$QUEUE_WORKER" &
queue=$!

first=''
until [[ -n ${first:-} ]]; do # a signal interrupts `wait`, which then leaves it unset
  wait -n -p first "$app" "$queue"
  status=$?
done

if [[ $first == "$queue" ]]; then
  echo "salad-queue: the queue worker ended with status $status; the application is stopped" >&2
  kill -TERM "$app" 2>/dev/null
  while kill -0 "$app" 2>/dev/null; do wait "$app"; done
else
  [[ -z $is_stopping ]] || sleep "$REPORT_S"
  kill -TERM "$queue" 2>/dev/null
  for ((tenths = 0; tenths < END_S * 10; tenths++)); do
    kill -0 "$queue" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL "$queue" 2>/dev/null
fi
exit "$status"
