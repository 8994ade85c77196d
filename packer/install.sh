#!/bin/sh
# Installs programs, configuration and services on a node. Run it once, as root, with all files in /tmp/node.
set -eu
from=${1:-/tmp/node}

for name in nomad consul vault; do
  program=$name
  [ "$name" != vault ] || program=bao
  install -m 0755 "$from/programs/$program" "/usr/local/bin/$program"
  # Nomad runs as root, because it starts tasks as other users; the other two only need their own files.
  [ "$name" = nomad ] || id "$name" >/dev/null 2>&1 ||
    useradd --system --home-dir "/var/lib/$name" --shell /usr/sbin/nologin "$name"
  owner=$name
  [ "$name" != nomad ] || owner=root
  install -d -m 0700 -o "$owner" -g "$owner" "/var/lib/$name" "/var/lib/$name/data"
  install -d -m 0750 -o root -g "$owner" "/etc/$name.d"
  install -m 0640 -o root -g "$owner" "$from/$name.hcl" "/etc/$name.d/10-waypost.hcl"
  install -m 0644 "$from/files/$name.service" "/etc/systemd/system/$name.service"
  install -m 0640 -o root -g "$owner" "$from/files/$name.hcl" "/etc/$name.d/20-image.hcl"
  ln -sf "/etc/systemd/system/$name.service" "/etc/systemd/system/multi-user.target.wants/$name.service"
done
