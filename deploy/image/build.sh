#!/usr/bin/env bash
# Builds the image without a container engine, as root, and tries it: `make image`.
#
#   BASE=docker.io/library/python:3.13-slim-bookworm   an image to build on; where none is given, a Debian one is made
#   DRIVER=vfs                                         storage; overlay is faster where the file system can
#   IMAGE=localhost/steelyard                          the name of what comes out
#   LOCK=requirements                                  what is installed; s3 has what backups to s3:// need too
#   BACKUP_TO=s3://bucket/path                         where what came out must back up to, by the AWS_ variables given
#   KEEP=build/image                                   where the base and the images are kept
set -euo pipefail
cd "$(dirname "$0")/../.."

IMAGE=${IMAGE:-localhost/steelyard}
KEEP=$(realpath --canonicalize-missing "${KEEP:-build/image}")
PY=${PY:-.venv/bin/python}
VERSION=$("$PY" -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')

for tool in buildah mmdebstrap unshare setpriv; do
    command -v "$tool" >/dev/null || {
        echo "image: $tool was not found; Debian has it in a package of that name, or in util-linux" >&2
        exit 1
    }
done
[ "$(id -u)" = 0 ] || { echo "image: expected root, which buildah needs for chroot, got uid $(id -u)" >&2; exit 1; }

mkdir -p "$KEEP/tmp"
# It accepts what it has just made; nothing is pulled unless BASE names it.
policy=$KEEP/policy.json
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$policy"
export BUILDAH_ISOLATION=chroot TMPDIR=$KEEP/tmp
buildah() { command buildah --storage-driver "${DRIVER:-vfs}" --root "$KEEP/store" --runroot "$KEEP/run" "$@"; }

if [ -z "${BASE:-}" ]; then
    BASE=localhost/steelyard-base
    if [ ! -e "$KEEP/base.tar" ]; then
        mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$KEEP/base.tar.new"
        mv "$KEEP/base.tar.new" "$KEEP/base.tar"
    fi
    if ! buildah inspect --type image "$BASE" >/dev/null 2>&1; then
        base=$(buildah from scratch)
        buildah add --quiet "$base" "$KEEP/base.tar" / >/dev/null
        buildah commit --quiet --signature-policy "$policy" --rm "$base" "$BASE" >/dev/null
    fi
fi

# What this machine's pip is told (an index, a certificate of a proxy) the one of the build is told too. It is lent to
# the build and is in no layer.
lent=()
for file in /etc/pip.conf "${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf"; do
    [ -e "$file" ] && lent+=(--volume "$file:$([ "$file" = /etc/pip.conf ] && echo "$file" || echo /root/.config/pip/pip.conf):ro")
done
certificates=${PIP_CERT:-$("$PY" -m pip config get global.cert 2>/dev/null || true)}
[ -n "$certificates" ] && lent+=(--volume "$certificates:$certificates:ro")

began=$(date +%s)
buildah build --quiet --layers=false --signature-policy "$policy" "${lent[@]}" --file deploy/Dockerfile \
    --build-arg BASE_IMAGE="$BASE" --build-arg VERSION="$VERSION" --build-arg LOCK="${LOCK:-requirements}" \
    --tag "$IMAGE:$VERSION" . >/dev/null
echo "built $IMAGE:$VERSION in $(($(date +%s) - began)) s"

container=$(buildah from --signature-policy "$policy" --pull-never "$IMAGE:$VERSION")
trap 'buildah rm "$container" >/dev/null' EXIT
root=$(buildah mount "$container")
du --summarize --block-size=1M "$root" | cut -f1 | sed 's/$/ MiB in all, of which/'
du --summarize --block-size=1M "$root/opt/steelyard" | cut -f1 | sed 's/$/ MiB are the server and what it needs/'
buildah inspect --type image "$IMAGE:$VERSION" >"$KEEP/config.json"
GRPC_ENABLE_FORK_SUPPORT=0 "$PY" deploy/image/check.py "$root" "$KEEP/config.json"
