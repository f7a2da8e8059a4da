#!/bin/sh
# The packages of the pooler's image, for any architecture, on any Debian.
#
#   sh packages.sh lock FOLDER ARCHITECTURE...   write new locks: what Debian has now
#   sh packages.sh fetch ARCHITECTURE FOLDER     fetch what the locks beside this file name
#   sh packages.sh unpack FOLDER ROOT            unpack packages into the image's root folder
#
# Each package is a file with a checksum. It comes from Debian's mirror; when the mirror has moved
# on, from Debian's snapshot archive. When neither has it, everything comes from new locks, whose
# checksums apt takes from Debian's signed indexes. No package's script runs: that needs no emulator.
set -eu

# The machine's own mirror, as apt knows it.
MIRROR=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' | sed -n 's#/debian/*$##p' | head -n 1)}
DEBIAN=debian.org
SNAPSHOT=${SNAPSHOT:-http://snapshot.$DEBIAN/archive}
KEYRING=${KEYRING:-/usr/share/keyrings/debian-archive-keyring.gpg}
HERE=$(cd "$(dirname "$0")" && pwd)

# PgBouncer is testing's: stable's has an unauthenticated crash (CVE-2026-19888). The rest is
# stable's, which gets security fixes.
STABLE=trixie
OLDEST_PGBOUNCER=1.26.1
# The health check is a line of shell.
WANTED="base-files, ca-certificates, dash, findutils, grep, python3, python3-boto3"
# Needed by nothing but packages' scripts.
UNUSED="debconf debianutils dpkg mawk openssl tar"
# What the supervisor asks of AWS; botocore describes 400 more.
SERVICES="secretsmanager servicediscovery"

fail() {
    echo "packages.sh: $*" >&2
    exit 1
}

[ -n "$MIRROR" ] || fail "apt's configuration names no Debian archive: set MIRROR to a host of one"

# prepare_apt WORK ARCHITECTURE: give apt folders and sources of its own, and read the indexes.
prepare_apt() {
    export APT_CONFIG="$1/apt.conf"
    mkdir -p "$1/lists/partial" "$1/cache/archives/partial" "$1/sources"
    : >"$1/status"
    cat >"$APT_CONFIG" <<END
APT::Architecture "$2";
APT::Architectures { "$2"; };
APT::Install-Recommends "false";
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
Acquire::ForceHash "SHA256";
Acquire::Languages "none";
Dir::State "$1";
Dir::State::lists "$1/lists";
Dir::State::status "$1/status";
Dir::Cache "$1/cache";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$1/sources";
Dir::Etc::preferences "$1/preferences";
Dir::Etc::preferencesparts "/dev/null";
END
    cat >"$1/sources/debian.sources" <<END
Types: deb
URIs: $MIRROR/debian
Suites: $STABLE testing
Components: main
Signed-By: $KEYRING

Types: deb
URIs: $MIRROR/debian-security
Suites: $STABLE-security
Components: main
Signed-By: $KEYRING
END
    cat >"$1/preferences" <<END
Package: *
Pin: release a=testing
Pin-Priority: -1

Package: pgbouncer
Pin: release a=testing
Pin-Priority: 990
END
    apt-get -qq update
}

# Turn apt's lines ('address' name size SHA256:sum) into those of a lock.
lock_lines() {
    while read -r address name _ sum; do
        address=$(echo "$address" | sed "s/'//g; s/%2b/+/g; s/%7e/~/g; s/%3a/:/g")
        for unused in $UNUSED; do
            case $name in "${unused}_"*) continue 2 ;; esac
        done
        case $name in *_all.deb) architecture=all ;; *) architecture=$1 ;; esac
        echo "$architecture ${sum#SHA256:} pool/${address#*/pool/}"
    done
}

# lock FOLDER ARCHITECTURE...
lock() {
    folder=$1
    shift
    snapshot=$(date -u +%Y%m%dT%H%M%SZ)
    scratch=$(mktemp -d)
    for architecture in "$@"; do
        prepare_apt "$scratch/$architecture" "$architecture"
        stanza=$(apt-cache --no-all-versions show pgbouncer)
        version=$(echo "$stanza" | sed -n 's/^Version: //p')
        dpkg --compare-versions "$version" ge "$OLDEST_PGBOUNCER" ||
            fail "Debian testing has PgBouncer $version; must be at least $OLDEST_PGBOUNCER"
        # postgresql-common would bring Perl, for a service that nobody starts here.
        needs=$(echo "$stanza" | sed -n 's/^Depends: //p' | sed 's/postgresql-common[^,]*, //')
        apt-get -qq --print-uris download pgbouncer >"$scratch/answer"
        lock_lines "$architecture" <"$scratch/answer" >>"$scratch/pgbouncer"
        apt-get -qq --print-uris satisfy "$WANTED, $needs" >"$scratch/answer"
        lock_lines "$architecture" <"$scratch/answer" >>"$scratch/image"
    done
    unset APT_CONFIG
    {
        printf 'version %s\nsnapshot %s\n' "$version" "$snapshot"
        sort -u -k 3 "$scratch/pgbouncer"
    } >"$folder/pgbouncer.lock"
    {
        printf 'snapshot %s\n' "$snapshot"
        sort -u -k 3 "$scratch/image"
    } >"$folder/image.lock"
    rm -r "$scratch"
}

# download ADDRESS FILE SUM: apt checks the sum, and leaves no file when it is another one.
download() {
    /usr/lib/apt/apt-helper -qq -o APT::Sandbox::User= -o Acquire::Retries=1 \
        -o Acquire::http::Timeout=15 download-file "$1" "$2" "SHA256:$3"
}

# fetch_locked LOCK ARCHITECTURE FOLDER
fetch_locked() {
    snapshot=$(sed -n 's/^snapshot //p' "$1")
    grep -E "^($2|all) " "$1" | while read -r _ sum path; do
        case $path in pool/updates/*) archive=debian-security ;; *) archive=debian ;; esac
        file=$3/${path##*/}
        address=$(echo "$path" | sed 's/+/%2b/g; s/~/%7e/g')
        download "$MIRROR/$archive/$address" "$file" "$sum" ||
            download "$SNAPSHOT/$archive/$snapshot/$address" "$file" "$sum" || exit 1
    done
}

# fetch ARCHITECTURE FOLDER
fetch() {
    grep -q "^$1 " "$HERE/pgbouncer.lock" || fail "pgbouncer.lock names no package for '$1'"
    mkdir -p "$2"
    if fetch_locked "$HERE/pgbouncer.lock" "$1" "$2" && fetch_locked "$HERE/image.lock" "$1" "$2"
    then
        return
    fi
    echo "packages.sh: no archive has all of the locked packages; the newest come instead:" >&2
    rm -f "$2"/*
    new=$(mktemp -d)
    lock "$new" "$1"
    fetch_locked "$new/pgbouncer.lock" "$1" "$2" || fail "PgBouncer cannot be fetched"
    fetch_locked "$new/image.lock" "$1" "$2" || fail "the image's packages cannot be fetched"
    cat "$HERE/pgbouncer.lock" "$HERE/image.lock" >"$new/locked"
    grep -h '/' "$new/pgbouncer.lock" "$new/image.lock" | grep -vxFf "$new/locked" |
        sed 's|.*/|  not the locked one: |' >&2 || true
    rm -r "$new"
}

# describe PACKAGE: write what dpkg would note of it; scanners for vulnerabilities read that.
describe() {
    dpkg-deb --field "$1" | sed '1a Status: install ok installed'
    echo
}

# unpack FOLDER ROOT
unpack() {
    mkdir -p "$2"
    for package in "$1"/*.deb; do
        dpkg-deb --fsys-tarfile "$package" |
            tar --extract --preserve-permissions --keep-directory-symlink --directory "$2"
    done
    mkdir -p "$2/var/lib/dpkg"
    for package in "$1"/*.deb; do
        describe "$package"
    done >"$2/var/lib/dpkg/status"
    prune "$2"
    configure "$2"
}

# prune ROOT: remove what nobody reads there. Licences stay.
prune() {
    (
        cd "$1"
        find usr/share/doc -type f ! -name copyright -delete
        find usr/share/doc -type d -empty -delete
        rm -rf usr/share/man usr/share/info usr/share/locale usr/share/lintian usr/share/bug
        rm -rf etc/default etc/init.d etc/pgbouncer usr/lib/systemd usr/share/pgbouncer
        cd usr/lib/python3/dist-packages/botocore/data
        for service in */; do
            case " $SERVICES " in *" ${service%/} "*) ;; *) rm -r "$service" ;; esac
        done
    )
}

# configure ROOT: do what the packages' scripts would, as far as it is needed.
configure() {
    printf 'hosts: files dns\n' >"$1/etc/nsswitch.conf"
    cat >"$1/etc/passwd" <<END
root:x:0:0:root:/root:/usr/sbin/nologin
pooler:x:10001:10001::/nonexistent:/usr/sbin/nologin
END
    printf 'root:x:0:\npooler:x:10001:\n' >"$1/etc/group"
    mkdir -p "$1/etc/ssl/certs"
    cat "$1"/usr/share/ca-certificates/mozilla/*.crt >"$1/etc/ssl/certs/ca-certificates.crt"
    install --directory --mode=0700 --owner=10001 --group=10001 "$1/run/pgbouncer"
}

verb=${1:-}
[ $# -gt 0 ] && shift
case "$verb" in
lock | fetch | unpack) "$verb" "$@" ;;
*) fail "say what to do: lock, fetch or unpack" ;;
esac
