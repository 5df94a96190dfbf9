#!/bin/bash
# Shows pgark at work on a throw-away cluster: builds the programs, installs PostgreSQL where there is none, and runs
# story.sh as an unprivileged user in a directory of its own, which is removed at the end.
#
# Environment: PG_BIN, the folder of PostgreSQL's programs (default: the newest that Debian installed).
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/servers/debian.sh

find_postgres() {
    local folder
    for folder in $(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -t/ -k5,5nr); do
        if [ -x "$folder/initdb" ] && [ "$(basename "$(dirname "$folder")")" -ge 15 ]; then
            echo "$folder"
            return
        fi
    done
}

install_postgres() {
    [ "$(id -u)" = 0 ] || fail "found no PostgreSQL 15 or later. Install one (apt-get install postgresql), or run this as root."
    # Debian's package would make and start a cluster of its own, which the demo does not use.
    local defaults=/etc/postgresql-common/createcluster.conf
    if [ ! -e "$defaults" ]; then
        mkdir -p "$(dirname "$defaults")"
        echo 'create_main_cluster = false' >"$defaults"
    fi
    host_packages postgresql
}

command -v cargo >/dev/null || fail "cargo is not on the PATH; install Rust first: https://rustup.rs"
say "Building the release binaries; the first time this takes some minutes."
cargo build --release --bins --package pgark-agent --package pgark-archive-command --package pgark-restore

PG_BIN=${PG_BIN:-$(find_postgres)}
if [ -z "$PG_BIN" ]; then
    install_postgres
    PG_BIN=$(find_postgres)
fi
[ -x "$PG_BIN/initdb" ] || fail "found no PostgreSQL 15 or later in ${PG_BIN:-/usr/lib/postgresql}."

# Not below the source tree: that can lie in root's home, where no other user gets in.
work=$(mktemp -d /tmp/pgark-demo.XXXXXX)
stop() {
    # Only what the demo itself started, by its process id.
    local pid_file pid
    for pid_file in "$work"/*/postmaster.pid; do
        pid=$(head -n1 "$pid_file" 2>/dev/null) || continue
        kill -QUIT "$pid" 2>/dev/null || continue
        while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
    done
    rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir "$work/bin"
target=$(cargo metadata --format-version 1 --no-deps | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
cp "$target"/release/{pgark-agent,pgark-archive-command,pgark-restore} "$work/bin/"
cp demo/story.sh "$work/"
as_user=()
if [ "$(id -u)" = 0 ]; then
    # PostgreSQL refuses to run as root.
    chown -R nobody: "$work"
    as_user=(setpriv --reuid nobody --regid "$(id -g nobody)" --clear-groups)
fi
cd "$work"
env -i HOME="$work" LANG=C.UTF-8 PATH="$work/bin:$PG_BIN:/usr/bin:/bin" "${as_user[@]}" bash "$work/story.sh" \
    || fail "a step went wrong: see above."
