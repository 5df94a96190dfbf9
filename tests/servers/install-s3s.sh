#!/bin/bash
# Installs s3s-fs, the light S3 server of the everyday tests (it checks signatures and keeps a bucket as a folder), into
# /opt/pgark-test/s3s. It is built from crates.io, which takes a few minutes the first time.
set -euo pipefail
. "$(dirname "$0")/debian.sh"

VERSION=0.14.1 # 0.15 and later ask for a newer Rust than this project does.
root=$TEST_PREFIX/s3s

# The program has no --version; cargo's own record of the folder says what is in it.
installed() { [ -x "$root/bin/s3s-fs" ] && grep -q "s3s-fs $VERSION " "$root/.crates.toml" 2>/dev/null; }

if ! installed; then
    need_root
    one_at_a_time
fi
if ! installed; then
    command -v cargo >/dev/null || fail "cargo is not on the PATH."
    say "Building s3s-fs $VERSION; this takes a few minutes."
    nice cargo install --quiet --locked "s3s-fs@$VERSION" --features binary --root "$root" || fail "cargo could not build s3s-fs: see above."
fi
say "s3s-fs $VERSION is there: $root/bin/s3s-fs."
