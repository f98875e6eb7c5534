#!/bin/bash
# Runs in a container of a node image: takes out of /var what need not be there. kind gives each node a volume at /var, into which Docker copies what the image has below,
# one file after the other, while the node waits to be started.
set -euo pipefail

# The images that the node's containerd holds: they come unpacked, beside the node image.
rm -rf /var/lib/containerd

# Debian's list of what is installed: nine in ten of the files in /var. It stays where dpkg looks for it, by a link to a directory that is read in place.
if [ -d /var/lib/dpkg ] && [ ! -L /var/lib/dpkg ]; then
  mkdir -p /usr/lib/sysimage
  mv /var/lib/dpkg /usr/lib/sysimage/dpkg
  ln -s /usr/lib/sysimage/dpkg /var/lib/dpkg
fi
