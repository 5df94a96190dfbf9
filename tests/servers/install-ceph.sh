#!/bin/bash
# Unpacks Ceph's RADOS Gateway, the strict S3 server of the full tests (signatures, conditional creates that are truly
# atomic, versioning, object lock), with everything it needs into /opt/pgark-test/ceph/root. `ceph.sh` runs it from
# there in a chroot. About 150 MB to download and 600 MB of disk. Does nothing where it is there already.
set -euo pipefail
. "$(dirname "$0")/debian.sh"

# The release that the tests were written against; another one still works if Debian has moved on, and says so.
EXPECTED=20.2
root=$TEST_PREFIX/ceph/root

if [ ! -e "$TEST_PREFIX/ceph/.complete" ]; then
    need_root
    one_at_a_time
fi
if [ ! -e "$TEST_PREFIX/ceph/.complete" ]; then
    host_packages curl
    say "Unpacking Ceph from sid into $root."
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    # Bind mounts of an earlier, broken installation must go before its folder does.
    for mount in proc dev; do mountpoint -q "$root/$mount" && umount "$root/$mount"; done
    rm -rf "$root"
    mkdir -p "$root"
    open_suites "$work" sid
    "${APT[@]}" -y -qq --download-only install radosgw ceph-mon ceph-osd ceph-base ceph-common base-files bash coreutils >/dev/null \
        || fail "apt-get could not download Ceph: see above."
    for package in "$work"/cache/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
    version=$(LC_ALL=C chroot "$root" radosgw --version) || fail "$root was unpacked, but its radosgw does not run."
    echo "$version" >"$TEST_PREFIX/ceph/.complete"
fi
version=$(cat "$TEST_PREFIX/ceph/.complete")
case $version in *" $EXPECTED."*) ;; *) say "The tests were written against Ceph $EXPECTED; this is another one." ;; esac
say "Ceph is there: $version."
