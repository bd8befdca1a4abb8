#!/bin/sh
# Installs kvwatt as two systemd services, or takes every trace of it away again. See docs/install-systemd.md.
#
#   deploy/install.sh [--python PYTHON] [--wheel FILE] [--without-program] [--instances] [--root DIR]
#   deploy/install.sh --uninstall [--root DIR]
#
#   --python PYTHON     interpreter for the environment in /opt/kvwatt (default python3; 3.11 or later)
#   --wheel FILE        install this file instead of the checkout that this script lies in
#   --without-program   leave /opt/kvwatt alone: the program is there by other means
#   --instances         kvwatt may start and stop vLLM: vllm@.service, and a polkit rule for exactly those units
#   --root DIR          install below DIR (an image, a package, a test): no users, no systemctl, no program
#   --uninstall         stop the services, put back the clocks, remove files, folders, users and groups
#
# Installing again changes nothing but the program, the units and the lists of users and folders: configuration
# that is there stays. Nothing is enabled or started: guard.toml must name GPUs first.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
python=python3
source=$here
root=
program=yes
instances=no
action=install

fail() { echo "install.sh: $*" >&2; exit 1; }
say() { echo "install.sh: $*"; }

while [ $# -gt 0 ]; do
    case $1 in
        --python|--wheel|--root)
            [ $# -ge 2 ] || fail "$1: a value is expected"
            case $1 in
                --python) python=$2 ;;
                --wheel) source=$2 ;;
                --root) root=$2; program=no ;;
            esac
            shift ;;
        --without-program) program=no ;;
        --instances) instances=yes ;;
        --uninstall) action=uninstall ;;
        -h|--help) sed -n '2,15p' "$0" | sed 's/^# \{0,1\}//'; exit 0 ;;
        *) fail "$1: expected --python, --wheel, --without-program, --instances, --root or --uninstall" ;;
    esac
    shift
done

case $root in
    '') live=yes ;;
    /*) live=no; [ -d "$root" ] || fail "--root $root: no such folder" ;;
    *) fail "--root $root: an absolute path is expected" ;;
esac

opt=$root/opt/kvwatt
etc=$root/etc/kvwatt
units=$root/etc/systemd/system
sysusers=$root/usr/lib/sysusers.d/kvwatt.conf
tmpfiles=$root/usr/lib/tmpfiles.d/kvwatt.conf
rules=$root/etc/polkit-1/rules.d
created=$root/var/lib/kvwatt-guard/created-by-install  # users, groups and folders that were not there before
guard="/opt/kvwatt/bin/kvwatt-guard --config /etc/kvwatt/guard.toml --state-file /var/lib/kvwatt-guard/state.json"

exists() { getent "$1" "$2" >/dev/null; }

# A folder and its missing parents; remembers which are new. One that is there keeps its mode.
folder() {
    path=$2 new=
    while [ ! -d "$path" ]; do
        new="folder:$path
$new"
        path=$(dirname "$path")
    done
    [ -d "$2" ] || install -d -m "$1" "$2"
    news=$news$new
}

# Users and groups; remembers which are new, so that uninstalling removes those and no others.
accounts() {
    for entry in passwd:kvwatt group:kvwatt group:kvwatt-tap; do
        exists "${entry%%:*}" "${entry#*:}" || echo "$entry" >>"$created"
    done
    if command -v systemd-sysusers >/dev/null; then
        systemd-sysusers "$sysusers"
    else
        exists group kvwatt || groupadd --system kvwatt
        exists group kvwatt-tap || groupadd --system kvwatt-tap
        exists passwd kvwatt || useradd --system --gid kvwatt --home-dir /var/lib/kvwatt \
            --no-create-home --shell /usr/sbin/nologin kvwatt
    fi
}

# A configuration file that is not there yet; one that is stays as it is.
config() {
    [ -e "$2" ] && { say "kept $2"; return; }
    install -m "$3" "$1" "$2"
    [ $live = no ] || chgrp "$4" "$2"
}

install_program() {
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "--python $python: 3.11 or later is needed"
    [ -x "$opt/bin/python" ] || "$python" -m venv "$opt"
    "$opt/bin/pip" install --quiet --upgrade "$source"
    chown -R root:root "$opt"  # the guard runs from it as root
    chmod -R go-w "$opt"
}

# A unit and a rule of that name that are there already may be the operator's own: they stay.
install_instances() {
    news=
    folder 0755 "$rules"
    folder 0755 "$root/etc/vllm"
    printf %s "$news" >>"$created"
    for pair in "vllm@.service:$units" "50-kvwatt.rules:$rules"; do
        name=${pair%%:*} place=${pair#*:}
        if [ -e "$place/$name" ] && ! grep -qxF "file:$place/$name" "$created"; then
            say "kept $place/$name"
            continue
        fi
        install -m 0644 "$here/systemd/$name" "$place/$name"
        grep -qxF "file:$place/$name" "$created" || echo "file:$place/$name" >>"$created"
    done
}

do_install() {
    news=
    for place in "$etc" "$units" "$(dirname "$sysusers")" "$(dirname "$tmpfiles")" "$root/var/lib"; do
        folder 0755 "$place"
    done
    folder 0700 "$(dirname "$created")"
    printf %s "$news" >>"$created"
    [ $program = no ] || install_program
    install -m 0644 "$here/systemd/kvwatt.sysusers" "$sysusers"
    install -m 0644 "$here/systemd/kvwatt.tmpfiles" "$tmpfiles"
    [ $live = no ] || accounts
    config "$here/systemd/guard.toml" "$etc/guard.toml" 0644 root
    config "$here/deploy/kvwatt.example.toml" "$etc/kvwatt.toml" 0640 kvwatt
    install -m 0644 "$here/systemd/kvwatt-guard.service" "$here/systemd/kvwatt.service" "$units/"
    [ $instances = no ] || install_instances
    if [ $live = yes ]; then
        systemd-tmpfiles --create "$tmpfiles"
        systemctl daemon-reload
    fi
    say "installed. Name the GPUs in $etc/guard.toml and the servers in $etc/kvwatt.toml, then:"
    say "systemctl enable --now kvwatt-guard.service kvwatt.service (docs/first-run.md has the way from there)"
}

# The clocks first: with the record gone nobody would know what to put back.
restore_clocks() {
    [ -e "$units/kvwatt-guard.service" ] && systemctl disable --now kvwatt.service kvwatt-guard.service
    [ -x "$opt/bin/kvwatt-guard" ] && [ -e "$root/var/lib/kvwatt-guard/state.json" ] || return 0
    $guard --reset-recorded || fail "clocks could not be put back (see above); nothing was removed"
}

remove_accounts() {
    [ -e "$created" ] || return 0
    ! grep -qx passwd:kvwatt "$created" || ! exists passwd kvwatt || userdel kvwatt
    for group in kvwatt kvwatt-tap; do
        ! grep -qx "group:$group" "$created" || ! exists group $group || groupdel $group
    done
}

# New folders that are empty again, the innermost first.
remove_folders() {
    echo "$1" | grep ^folder: | sort -r | while IFS= read -r line; do
        [ ! -d "${line#folder:}" ] || rmdir --ignore-fail-on-non-empty "${line#folder:}"
    done
}

do_uninstall() {
    [ $live = no ] || restore_clocks
    folders=$(cat "$created" 2>/dev/null || true)
    echo "$folders" | sed -n 's/^file://p' | while IFS= read -r file; do rm -f "$file"; done
    rm -f "$units/kvwatt-guard.service" "$units/kvwatt.service" "$sysusers" "$tmpfiles"
    rm -rf "$units/kvwatt-guard.service.d" "$units/kvwatt.service.d"
    [ $live = no ] || systemctl daemon-reload
    [ $live = no ] || remove_accounts
    rm -rf "$etc" "$root/var/lib/kvwatt" "$root/var/lib/kvwatt-guard"
    [ $program = no ] || rm -rf "$opt"
    remove_folders "$folders"
    [ $live = no ] || rm -rf /run/kvwatt /run/kvwatt-tap
    say "removed"
}

[ $live = no ] || [ "$(id -u)" = 0 ] || fail "root is needed (or --root DIR)"
do_$action
