#!/usr/bin/env bash
# Installs the OpenMMLab toolboxes into a virtual environment that has the package already: install_openmmlab.sh .venv
#
# mmcv's operators are compiled here, against the installed torch. The wheel is kept under a name that says for which:
# pip's own cache does not, so that after a change of torch it would reuse one that fails at import.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${1:-.venv}/bin/python"
pip() { "$python" -m pip --disable-pip-version-check "$@"; }
pinned() { grep -E "^$1==" constraints.txt; }

pip install -q -c constraints.txt 'setuptools>=80,<82' wheel ninja psutil packaging
# e.g. torch-2.11.0+cu130-cp311-cpu
target=$("$python" -c "
import os, sys, torch
device = 'cuda' if torch.cuda.is_available() or os.getenv('FORCE_CUDA') == '1' else 'cpu'
print(f'torch-{torch.__version__}-cp{sys.version_info.major}{sys.version_info.minor}-{device}')")
cache="${XDG_CACHE_HOME:-$HOME/.cache}/vmamba/wheels/$target"

build() {
    local fresh
    fresh=$(mktemp -d)
    echo "building $(pinned onedl-mmcv) for $target, which takes a quarter of an hour on two cores"
    # the compiler's flags replace Python's own, which ask for debug symbols; ninja is found on the path
    PATH="$(dirname "$python"):$PATH" MAX_JOBS="${MAX_JOBS:-$(nproc)}" CFLAGS="-O2 -g0" \
        pip wheel -q --no-build-isolation --no-cache-dir --no-deps --no-binary onedl-mmcv -w "$fresh" "$(pinned onedl-mmcv)"
    mkdir -p "$cache"
    mv "$fresh"/onedl_mmcv-*.whl "$cache/"
    rmdir "$fresh"
}

install() {
    pip install -q --no-cache-dir -c constraints.txt --force-reinstall --no-deps "$cache/$1"
    pip install -q -c constraints.txt -e '.[train,dev,openmmlab]'
    # mmcv asks for opencv-python, whose window system a server lacks; the headless one has the same files
    pip install -q --no-deps --force-reinstall "$(pinned opencv-python-headless)"
}

prove() {
    "$python" - << 'PY'
import torch
from mmcv.ops import nms

boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), iou_threshold=0.5)[1].tolist()
assert kept == [0, 2], kept
import mmdet.models, mmseg.models  # noqa: E401, F401
import mmcv, mmdet, mmengine, mmseg  # noqa: E401
print(f"mmcv.ops.nms runs: mmengine {mmengine.__version__}, mmcv {mmcv.__version__}, mmdet {mmdet.__version__}, "
      f"mmseg {mmseg.__version__}, torch {torch.__version__}")
PY
}

wheel=$(pinned onedl-mmcv | sed -E 's/^onedl-mmcv==(.*)/onedl_mmcv-\1-*.whl/')
kept() { (cd "$cache" 2>/dev/null && compgen -G "$wheel" | head -n 1); }
if [[ -z "$(kept)" ]]; then
    build
    install "$(kept)"
    prove
else
    install "$(kept)"
    prove || { rm -f "$cache/$(kept)"; build; install "$(kept)"; prove; }
fi
