#!/usr/bin/env bash
#
# Installs what the guest needs: packages.sh STORE. Downloads a cloud kernel into STORE/kernel.
#
# qemu-system-x86 shares files with qemu-utils, and apt would remove the one for the other: it has
# to come in the same version. Where qemu-utils came from the backports, they are enabled, in the
# file that already names the distribution's archive.

set -u -o pipefail
export DEBIAN_FRONTEND=noninteractive
store=$1
apt_settings=(-q -o DPkg::Lock::Timeout=300)

die() {
    echo "packages: $*" >&2
    exit 1
}

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo -n)
updated=

update() {
    [ -z "$updated" ] || return 0
    "${as_root[@]}" apt-get "${apt_settings[@]}" update || die 'apt-get update failed'
    updated=1
}

install() {
    update
    "${as_root[@]}" apt-get "${apt_settings[@]}" install -y --no-install-recommends "$@" ||
        die "cannot install $*"
}

version_of() {
    dpkg-query -W -f='${db:Status-Status} ${Version}\n' "$1" 2>/dev/null |
        sed -n 's/^installed //p'
}

offered() { apt-cache madison qemu-system-x86 | awk '{ print $3 }' | grep -qxF "$1"; }

# The suite is added to the entry with the updates, whichever of the two formats it is in.
enable_backports() {
    local name file
    name=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.sources \
        /etc/apt/sources.list.d/*.list; do
        [ -f "$file" ] || continue
        "${as_root[@]}" sed -i -E \
            -e "/^Suites:.* $name-updates/{/$name-backports/!s/\$/ $name-backports/}" \
            -e "/^deb .* $name-updates /{p;s/ $name-updates / $name-backports /}" "$file"
    done
    updated=
    update
    suite=$name-backports
}

install_qemu() {
    local before suite=
    [ -z "$(version_of qemu-system-x86)" ] || return 0
    [ -n "$(version_of qemu-utils)" ] || install qemu-utils
    before=$(version_of qemu-utils)
    update
    case $before in
    *~bpo*)
        suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)-backports
        offered "$before" || enable_backports
        ;;
    esac
    offered "$before" || die "no qemu-system-x86 in version $before, that of qemu-utils"
    install ${suite:+-t "$suite"} qemu-system-x86
    [ "$(version_of qemu-utils)" = "$before" ] ||
        die "qemu-utils was $before and is $(version_of qemu-utils) now"
}

fetch_kernel() {
    local package folder=$store/kernel
    [ ! -e "$folder/version" ] || return 0
    update
    package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: //p' | head -n 1)
    [ -n "$package" ] || die 'no package linux-image-cloud-amd64'
    rm -rf "$folder" && mkdir -p "$folder"
    (cd "$folder" && apt-get "${apt_settings[@]}" -o APT::Sandbox::User=root download "$package" &&
        dpkg -x linux-image-*.deb . && rm linux-image-*.deb) || die "no kernel $package"
    local version
    version=$(basename "$folder"/lib/modules/*)
    depmod -b "$folder" "$version" || die 'depmod failed'
    echo "$version" >"$folder/version"
}

missing=()
for package in busybox-static cpio kmod e2fsprogs fdisk nbd-client libnbd-bin binutils; do
    [ -n "$(version_of "$package")" ] || missing+=("$package")
done
[ ${#missing[@]} = 0 ] || install "${missing[@]}"
install_qemu
fetch_kernel
