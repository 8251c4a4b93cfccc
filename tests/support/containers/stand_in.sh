#!/usr/bin/env bash
# Make an image that stands in for python:X.Y-slim where no image registry can be reached: this
# machine's Debian release, and its CPython X.Y in /usr/local. It is not the official image.
# usage: stand_in.sh ENGINE X.Y TAG
set -euo pipefail
engine=$1 version=$2 tag=$3

if ! command -v mmdebstrap >/dev/null; then
  echo "mmdebstrap is not installed" >&2
  exit 1
fi

uv=(uv)
command -v uv >/dev/null || uv=(python3 -m uv)
python=$(UV_PYTHON_DOWNLOADS=never "${uv[@]}" python find --no-project --managed-python "$version" 2>/dev/null ||
  ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python"$version" | tail -n 1)
prefix=$("$python" -c 'import sys; print(sys.base_prefix)')
if [[ $prefix == /usr ]]; then
  echo "CPython $version is the distribution's own: give one that has a prefix of its own" >&2
  exit 1
fi

# The Debian packages of the libraries that this interpreter was linked with.
libraries() {
  ldd "$prefix/bin/python$version" "$prefix"/lib/python*/lib-dynload/[!_]*.so \
    "$prefix"/lib/python*/lib-dynload/_[!t]*.so | awk '$3 ~ "^/" && !seen[$3]++ { print $3 }' |
    while read -r file; do
      dpkg -S "$file" 2>/dev/null || dpkg -S "${file#/usr}" 2>/dev/null || dpkg -S "/usr$file" 2>/dev/null || true
    done | cut -d: -f1 | sort -u | paste -sd,
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Without site-packages: pip comes from the wheel that CPython bundles.
tar -C "$prefix" -cf "$work/python.tar" --owner=0 --group=0 --exclude=__pycache__ --exclude=test \
  --exclude='*.a' --exclude='config-*' --exclude=idlelib --exclude='*tkinter*' --exclude=share \
  --exclude='site-packages/*' --exclude='bin/pip*' bin lib include
. /etc/os-release
sources=(/etc/apt/sources.list.d/{debian,ubuntu}.sources /etc/apt/sources.list)
for source in "${sources[@]}"; do [[ -s $source ]] && break; done
mmdebstrap --quiet --mode=root --variant=minbase --format=tar \
  --include="ca-certificates,netbase,tzdata,$(libraries)" \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
  --customize-hook="tar-in $work/python.tar /usr/local" \
  --customize-hook='chroot "$1" ldconfig' \
  --customize-hook="chroot \"\$1\" /usr/local/bin/python$version -m ensurepip --default-pip >/dev/null 2>&1" \
  --customize-hook="ln -sf python$version \"\$1/usr/local/bin/python\"" \
  --customize-hook="ln -sf python$version \"\$1/usr/local/bin/python3\"" \
  "$VERSION_CODENAME" "$work/image.tar" "$source"
"$engine" import \
  --change 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin' \
  --change 'ENV LANG=C.UTF-8' --change 'CMD ["python3"]' "$work/image.tar" "$tag" >/dev/null
