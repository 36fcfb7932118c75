#!/usr/bin/env bash
# Pack what tests/gpu_accept.py needs on a GPU machine without internet into .gpu/, under 40 MiB.
#
#     tests/gpu_pack.sh FractalBrainNet-v2.py [CIFAR10_IMAGES.zip]
#
# The first file is the public reference, which fbsearch is compared with. The second has CIFAR-10 as images, in
# train/<class>/*.jpg and test/<class>/*.jpg; by default ../shared/data/cifar10-images.zip beside the repository.
# The machine has Python 3.12, torch 2.11, torchvision, numpy, scipy, scikit-learn, pandas, pillow, pytest, safetensors,
# rich, jinja2, psutil and filelock; the wheels of the rest have the versions of the development environment.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
reference=$1
images=${2:-../shared/data/cifar10-images.zip}
for file in "$reference" "$images"; do
    [ -f "$file" ] || { echo "$file: no such file" >&2; exit 1; }
done

packages="optuna alembic sqlalchemy greenlet mako colorlog tqdm pyyaml cmaes pydantic pydantic-core annotated-types
    typing-inspection typer click shellingham annotated-doc hypothesis sortedcontainers"
rm -rf .gpu
mkdir .gpu
cp "$reference" .gpu/FractalBrainNet-v2.py
uv build --quiet --wheel --out-dir .gpu
rm -f .gpu/.gitignore

installed=$(uv pip freeze | tr '[:upper:]_' '[:lower:]-')
wanted=""
for package in $packages; do
    wanted="$wanted $(grep "^$package==" <<<"$installed" || true)" # not every version of typer needs all of them
done
platforms=""
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux_2_12 manylinux_2_5 manylinux1; do
    platforms="$platforms --platform ${tag}_x86_64"
done
# shellcheck disable=SC2086
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp $platforms --dest .gpu $wanted

# One solid archive: the images' tables and headers, which are all alike, are stored once.
python3 - "$images" .gpu/cifar10.tar.xz <<'PYTHON'
import io
import sys
import tarfile
import zipfile

source, target = sys.argv[1:]
with zipfile.ZipFile(source) as images, tarfile.open(target, "w:xz", preset=9, format=tarfile.USTAR_FORMAT) as packed:
    for name in sorted(images.namelist()):
        if not name.endswith("/"):
            member = tarfile.TarInfo(name)
            content = images.read(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
PYTHON

size=$(du -sm --apparent-size .gpu | cut -f1)
echo ".gpu: $size MiB, $(ls .gpu/*.whl | wc -l) wheels"
[ "$size" -lt 40 ] || { echo ".gpu/ has $size MiB; it must stay under 40" >&2; exit 1; }
