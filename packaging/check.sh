#!/bin/bash
# Checks what is packaged: the systemd units with systemd-analyze, docker-compose.yml with docker compose, the shell
# scripts with bash. Installs what is missing for that (as root); no running systemd and no Docker engine is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/servers/debian.sh

compose=$TEST_PREFIX/compose/usr/libexec/docker/cli-plugins/docker-compose

main() {
    check_units
    check_compose
    local script
    for script in packaging/compose/*.sh demo/*.sh; do bash -n "$script" || fail "$script is no valid script."; done
    say "packaging is in order."
}

check_units() {
    command -v systemd-analyze >/dev/null || { need_root && host_packages systemd; }
    local work answer
    work=$(mktemp -d)
    # The program need not be installed here; everything else about its line is checked.
    cp packaging/systemd/pgark-{backup,drill}.timer "$work/"
    local command
    for command in backup run drill; do
        sed 's,^ExecStart=/usr/local/bin/pgark-[a-z]* ,ExecStart=/bin/true ,' "packaging/systemd/pgark-$command.service" >"$work/pgark-$command.service"
        grep -qE "^ExecStart=/bin/true $command( --random)?\$" "$work/pgark-$command.service" || fail "pgark-$command.service does not start $command."
    done
    # Unknown keys are only warnings, with exit status 0.
    answer=$(systemd-analyze verify "$work"/pgark-*.{service,timer} 2>&1) || true
    rm -rf "$work"
    [ -z "$answer" ] || fail "systemd-analyze verify says: $answer"
    local timer
    for timer in packaging/systemd/*.timer; do
        systemd-analyze calendar "$(sed -n 's/^OnCalendar=//p' "$timer")" >/dev/null
    done
}

check_compose() {
    if ! "$compose" version >/dev/null 2>&1; then
        need_root
        one_at_a_time
        say "Unpacking docker compose from sid into $TEST_PREFIX/compose."
        local work
        work=$(mktemp -d)
        open_suites "$work" sid
        (cd "$work/cache" && "${APT[@]}" -qq download docker-compose) || fail "apt-get could not download docker-compose: see above."
        rm -rf "$TEST_PREFIX/compose"
        mkdir -p "$TEST_PREFIX/compose"
        dpkg-deb -x "$work"/cache/docker-compose_*.deb "$TEST_PREFIX/compose"
        rm -rf "$work"
        "$compose" version >/dev/null || fail "$compose does not run."
    fi
    local answer mounted
    answer=$("$compose" -f docker-compose.yml config -q 2>&1) || fail "docker compose config says: $answer"
    [ -z "$answer" ] || fail "docker compose config warns: $answer"
    # It does not look at whether the files are there that it mounts.
    for mounted in $(sed -n 's/^ *- \(\.\/[^:]*\):.*/\1/p' docker-compose.yml); do
        [ -e "$mounted" ] || fail "docker-compose.yml mounts $mounted, which does not exist."
    done
}

main
