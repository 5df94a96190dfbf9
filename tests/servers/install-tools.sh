#!/bin/bash
# Installs the tools that the tests read stored data with, because anybody must be able to: age, zstd, tar; and strace,
# which shows them what a program asked the system for. Debian has them all as packages. Does nothing where they are
# there already.
set -euo pipefail
. "$(dirname "$0")/debian.sh"

missing=()
for tool in age zstd tar strace; do
    command -v "$tool" >/dev/null || missing+=("$tool")
done
if [ ${#missing[@]} != 0 ]; then
    need_root
    one_at_a_time
    host_packages "${missing[@]}"
fi
say "age, zstd, tar and strace are there."
