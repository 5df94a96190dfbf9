#!/bin/bash
# Runs the RADOS Gateway that install-ceph.sh unpacked: one monitor, one OSD and the gateway, on 127.0.0.1 only.
#
# ceph.sh start        starts it where it does not run already (made anew when it was never started), with the tests' user
# ceph.sh stop         stops it; what it stores stays
# ceph.sh reset        stops it and forgets what it stores
# ceph.sh bucket NAME [HEADER: VALUE]…   creates a bucket, as with "x-amz-bucket-object-lock-enabled: true"
# ceph.sh lock NAME    locks what is stored in the bucket from now on, for a day; it was created with object lock
#
# Needs root: the programs run in a chroot with /proc and /dev bound into it.
set -euo pipefail
. "$(dirname "$0")/debian.sh"

root=$TEST_PREFIX/ceph/root
run=$TEST_PREFIX/ceph/run
PORT=${PGARK_TEST_RGW_PORT:-55051}
MONITOR_PORT=56789
ACCESS_KEY=AKIATESTTESTTEST
SECRET_KEY=secretsecretsecret
# The OSD's own id: the one given at its creation must be the one it is formatted with.
OSD=7a1f0c9e-0000-4000-8000-000000000001
FSID=11111111-2222-3333-4444-555555555555
# Without it radosgw aborts on a machine whose locale it does not have.
export LC_ALL=C LANG=C

inside() { chroot "$root" "$@"; }
answers() { [ "$(curl -s -m 2 -o /dev/null -w '%{http_code}' "http://127.0.0.1:$PORT/")" = 200 ]; }

daemon() {
    local name=$1
    shift
    # In a session of its own, so that the end of the test that started it is not its end; and without the lock.
    setsid chroot "$root" "$@" >>"$run/$name.log" 2>&1 9>&- </dev/null &
    echo $! >"$run/$name.pid"
}

end() {
    local pid attempt
    pid=$(cat "$run/$1.pid" 2>/dev/null) || return 0
    # A pid from before a restart of the machine can be another program's by now.
    if [ "$(readlink "/proc/$pid/root" 2>/dev/null)" = "$root" ]; then
        kill "$pid" 2>/dev/null || true
        for attempt in $(seq 100); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -9 "$pid" 2>/dev/null || true
    fi
    rm -f "$run/$1.pid"
}

bind() {
    local folder
    mkdir -p "$root"/{proc,dev,tmp,run/ceph,etc/ceph,var/lib/ceph/mon,var/lib/ceph/osd,var/log/ceph,var/run/ceph} "$run"
    for folder in proc dev; do mountpoint -q "$root/$folder" || mount --bind "/$folder" "$root/$folder"; done
}

configure() {
    [ -s "$root/etc/passwd" ] || echo 'root:x:0:0:root:/root:/bin/bash' >"$root/etc/passwd"
    [ -s "$root/etc/group" ] || echo 'root:x:0:' >"$root/etc/group"
    echo '127.0.0.1 localhost' >"$root/etc/hosts"
    cat >"$root/etc/ceph/ceph.conf" <<CONF
[global]
fsid = $FSID
mon_host = v1:127.0.0.1:$MONITOR_PORT
ms_bind_msgr2 = false
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 2000
mon_data_avail_crit = 1
osd_crush_chooseleaf_type = 0
osd_objectstore = bluestore
bluestore_block_size = 8589934592
osd_memory_target = 1073741824
log_to_stderr = false
run_dir = /run/ceph
admin_socket =
[mon]
mon_data = /var/lib/ceph/mon
[osd]
osd_data = /var/lib/ceph/osd
ms_bind_port_min = 56800
ms_bind_port_max = 56850
[client]
rgw_frontends = beast endpoint=127.0.0.1:$PORT
keyring = /dev/null
CONF
}

create() {
    rm -rf "$root"/var/lib/ceph/mon/* "$root"/var/lib/ceph/osd/* "$run/created"
    configure
    inside monmaptool --create --clobber --fsid "$FSID" --addv a "[v1:127.0.0.1:$MONITOR_PORT]" /tmp/monmap >/dev/null
    inside ceph-mon --mkfs -i a --monmap /tmp/monmap --keyring /dev/null
    daemon mon ceph-mon -f -i a
    local attempt made=
    for attempt in $(seq 50); do
        timeout 5 chroot "$root" ceph osd new "$OSD" 0 >/dev/null 2>&1 && made=1 && break
        sleep 0.2
    done
    [ -n "$made" ] || fail "the monitor does not answer; see $run/mon.log."
    inside ceph-osd --mkfs -i 0 --osd-uuid "$OSD" >/dev/null 2>&1
    end mon
}

start() {
    if answers; then
        say "The gateway answers on 127.0.0.1:$PORT already."
        return
    fi
    [ -e "$TEST_PREFIX/ceph/.complete" ] || fail "Ceph is not installed: run install-ceph.sh first."
    bind
    stop
    [ -e "$run/created" ] || create
    configure
    daemon mon ceph-mon -f -i a
    daemon osd ceph-osd -f -i 0
    daemon rgw radosgw -f -n client.rgw.x
    local attempt
    for attempt in $(seq 900); do
        answers && break
        # An OSD that talks to the monitor before it has learnt the cluster's id ("wrong fsid") gives up at once.
        kill -0 "$(cat "$run/osd.pid")" 2>/dev/null || daemon osd ceph-osd -f -i 0
        sleep 0.1
    done
    answers || fail "the gateway did not answer within 90 seconds; see the logs in $run."
    if [ ! -e "$run/created" ]; then
        inside radosgw-admin -n client.rgw.x user create --uid=test --display-name=test \
            --access-key="$ACCESS_KEY" --secret-key="$SECRET_KEY" >/dev/null 2>"$run/user.log" \
            || fail "could not create the tests' user; see $run/user.log."
        touch "$run/created"
    fi
    say "The gateway answers on 127.0.0.1:$PORT."
}

stop() {
    local name
    for name in rgw osd mon; do end $name; done
}

bucket() {
    local name=$1 header status
    # The digest of an empty body: curl 7.88 does not send it by itself, and the gateway refuses a signature without it.
    local headers=(-H "x-amz-content-sha256: $(printf '' | sha256sum | cut -d' ' -f1)")
    shift
    for header in "$@"; do headers+=(-H "$header"); done
    status=$(curl -s -o "$run/bucket.answer" -w '%{http_code}' -X PUT --aws-sigv4 aws:amz:default:s3 --user "$ACCESS_KEY:$SECRET_KEY" \
        "${headers[@]}" "http://127.0.0.1:$PORT/$name")
    [ "$status" = 200 ] || fail "the bucket $name could not be created (HTTP $status): $(cat "$run/bucket.answer")"
}

lock() {
    local body status
    body='<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>'
    body+='<Mode>GOVERNANCE</Mode><Days>1</Days></DefaultRetention></Rule></ObjectLockConfiguration>'
    status=$(curl -s -o "$run/lock.answer" -w '%{http_code}' -X PUT --aws-sigv4 aws:amz:default:s3 --user "$ACCESS_KEY:$SECRET_KEY" \
        -H "x-amz-content-sha256: $(printf '%s' "$body" | sha256sum | cut -d' ' -f1)" -H 'Content-Type: application/xml' \
        -H "Content-MD5: $(printf '%s' "$body" | openssl md5 -binary | base64)" -d "$body" \
        "http://127.0.0.1:$PORT/$1?object-lock=")
    [ "$status" = 200 ] || fail "the bucket $1 could not be locked (HTTP $status): $(cat "$run/lock.answer")"
}

need_root
one_at_a_time
case ${1:-} in
start) start ;;
stop)
    stop
    for folder in proc dev; do mountpoint -q "$root/$folder" && umount "$root/$folder"; done
    ;;
reset)
    stop
    rm -f "$run/created"
    ;;
bucket) shift && bucket "$@" ;;
lock) lock "$2" ;;
*) fail "knows start, stop, reset, bucket NAME and lock NAME." ;;
esac
