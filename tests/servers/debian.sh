# What the install scripts share: plain words on the terminal, the machine's own Debian mirror, and packages of another
# suite unpacked into a folder of their own, so that the machine itself stays as it is. Sourced, not run.

TEST_PREFIX=${PGARK_TEST_PREFIX:-/opt/pgark-test}

say() { printf '%s\n' "$*"; }
fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

need_root() { [ "$(id -u)" = 0 ] || fail "must be run as root, because it installs into $TEST_PREFIX and may call apt-get."; }

# One installer at a time: two test runs that start together must not unpack into the same folder.
one_at_a_time() {
    # A second descriptor would wait for the first one.
    [ -n "${locked:-}" ] && return
    mkdir -p "$TEST_PREFIX"
    exec 9>"$TEST_PREFIX/.lock"
    flock -w 1800 9 || fail "another installer has held $TEST_PREFIX/.lock for half an hour."
    locked=yes
}

# Installs the named packages of the machine's own suite that are missing.
host_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return
    say "Installing ${missing[*]} from the machine's own package sources."
    apt-get -qq update || fail "apt-get update failed: see above."
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends \
        -o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=0 install "${missing[@]}" >/dev/null \
        || fail "apt-get could not install ${missing[*]}: see above."
}

# The mirror this machine uses (up to the last path component), in either form of sources file.
debian_mirror() {
    local url
    url=$(cat /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null \
        | awk '/^URIs:/ { print $2 } /^deb / { sub(/\[[^]]*\] */, ""); print $2 }' | grep -m1 -E '/debian/?$') || true
    printf '%s' "${url:-http://deb.debian.org/debian}" | sed 's,/debian/*$,,'
}

# open_suites FOLDER SUITE...: a private package state with an empty list of installed packages, so that the closure
# of a package is complete down to libc. Sets APT, the command to use.
open_suites() {
    local work=$1 suite archive mirror
    shift
    mirror=$(debian_mirror)
    [ -s /usr/share/keyrings/debian-archive-keyring.gpg ] || host_packages debian-archive-keyring
    mkdir -p "$work"/sources "$work"/lists/partial "$work"/cache/archives/partial
    : >"$work/status"
    for suite in "$@"; do
        archive=debian
        case $suite in *-security) archive=debian-security ;; esac
        printf 'Types: deb\nURIs: %s/%s\nSuites: %s\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n' \
            "$mirror" "$archive" "$suite"
    done >"$work/sources/test.sources"
    APT=(apt-get -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$work/sources"
        -o Dir::Etc::preferencesparts=/dev/null -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache"
        -o "Dir::State::status=$work/status" -o APT::Install-Recommends=0 -o Debug::NoLocking=1
        -o APT::Sandbox::User=root -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
        -o Acquire::Languages=none -o Acquire::Retries=3)
    "${APT[@]}" -qq update || fail "could not read the package lists of $* from $mirror."
}
