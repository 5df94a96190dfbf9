#!/bin/bash
# A backup at once, and then every night at 02:00 (UTC). A failed one is reported by the container's log and tried again
# an hour later. Becomes the container's first process, so it passes SIGTERM on itself.
set -uo pipefail
trap 'kill "$child" 2>/dev/null; wait "$child"; exit 143' TERM INT
run() {
    "$@" &
    child=$!
    wait "$child"
}
while :; do
    if run pgark-agent backup; then
        until=$(date -d 'tomorrow 02:00' +%s)
    else
        echo "The backup failed with exit code $?; trying again in an hour." >&2
        until=$(($(date +%s) + 3600))
    fi
    run sleep $((until - $(date +%s)))
done
