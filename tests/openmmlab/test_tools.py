"""The scripts around the toolboxes, end to end on a few digit scenes."""
import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import make_digit_scenes
import numpy as np
import openmmlab_flops
import predict_openmmlab
import pytest
import torch
import train_openmmlab
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as mask_tools

ROOT = Path(__file__).resolve().parents[2]
MASK_RCNN = ROOT / "configs" / "mmdet" / "mask_rcnn_vmamba_nano_fpn_digit_scenes.py"
UPERNET = ROOT / "configs" / "mmseg" / "upernet_vmamba_nano_digit_scenes.py"
SMALL = {"model_name": "test_vmamba"}
CHANNELS = [16, 24, 32, 48]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("tools") / "scenes"
    with contextlib.redirect_stdout(io.StringIO()):
        assert make_digit_scenes.main(["--train", "4", "--validation", "2", "--size", "64", "--output", str(root)]) == 0
    return root


def write_config(path, base, data):
    """A config of two steps on the small scenes, with the smallest model."""
    loader = {"dataset": {"data_root": str(data)}}
    changes = {
        "train_dataloader": {"batch_size": 2, **loader}, "val_dataloader": loader, "test_dataloader": loader,
        "param_scheduler": None}
    if base == UPERNET:
        changes["model"] = {
            "backbone": {**SMALL, "pretrained": False}, "decode_head": {"in_channels": CHANNELS},
            "auxiliary_head": {"in_channels": CHANNELS[2]}, "data_preprocessor": {"size": (64, 64)}}
        changes["train_cfg"] = {"max_iters": 2, "val_interval": 2}
        changes["default_hooks"] = {"checkpoint": {"interval": 2}}
    else:
        # with a threshold nothing would be found so early, and there would be no figures
        changes["model"] = {"backbone": SMALL, "neck": {"in_channels": CHANNELS},
                            "test_cfg": {"rcnn": {"score_thr": 0.0}}}
        changes["train_cfg"] = {"max_epochs": 1, "val_interval": 1}
        changes["val_evaluator"] = changes["test_evaluator"] = {"ann_file": f"{data}/annotations/validation.json"}
    lines = [f"_base_ = {str(base)!r}", *(f"{key} = {value!r}" for key, value in changes.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module", params=[MASK_RCNN, UPERNET], ids=["detection", "segmentation"])
def run(request, data, tmp_path_factory):
    """(config, work directory) of a finished run."""
    folder = tmp_path_factory.mktemp(request.param.parent.name)
    config = write_config(folder / "config.py", request.param, data)
    assert train_openmmlab.main([str(config), "--work-dir", str(folder / "run")]) == 0
    return config, folder / "run"


def checkpoint(work_dir):
    return (work_dir / "last_checkpoint").read_text().strip()


def test_run_leaves_checkpoint_and_scalars(run):
    _, work_dir = run
    state = torch.load(checkpoint(work_dir), weights_only=False)
    assert state["meta"]["dataset_meta"]["classes"][-10:] == tuple("0123456789")
    rows = [json.loads(line) for path in work_dir.rglob("scalars.json") for line in path.read_text().splitlines()]
    assert any("mIoU" in row or "coco/bbox_mAP_50" in row for row in rows)


def test_finished_run_is_not_trained_over(run, capsys):
    config, work_dir = run
    before = Path(checkpoint(work_dir)).read_bytes()
    assert train_openmmlab.main([str(config), "--work-dir", str(work_dir)]) == 2
    assert re.fullmatch(r"error: \S+ already holds a run: continue it with --resume.*\n", capsys.readouterr().err)
    assert Path(checkpoint(work_dir)).read_bytes() == before


def test_resumed_run_goes_on(run, tmp_path):
    config, work_dir = run
    longer = {"max_iters": 4} if "upernet" in config.read_text() else {"max_epochs": 2}
    more = tmp_path / "more.py"
    more.write_text(f"_base_ = {str(config)!r}\ntrain_cfg = {longer!r}\n")
    flags = [str(more), "--work-dir", str(tmp_path / "run"), "--resume", checkpoint(work_dir)]
    assert train_openmmlab.main(flags) == 0
    old, new = (torch.load(checkpoint(path), weights_only=False)["meta"] for path in (work_dir, tmp_path / "run"))
    assert (old["iter"], new["iter"]) == (2, 4)


def test_test_prints_the_metrics(run, tmp_path, capsys):
    config, work_dir = run
    assert train_openmmlab.main([str(config), "--work-dir", str(tmp_path), "--test", checkpoint(work_dir)]) == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "mIoU" in metrics or {"coco/bbox_mAP_50", "coco/segm_mAP_50"} <= metrics.keys()
    assert all(-1 <= value <= 100 for value in metrics.values())


def test_predictions(run, data, tmp_path):
    config, work_dir = run
    images = data / "images" / "validation"
    output = tmp_path / "out"
    flags = [str(config), checkpoint(work_dir), str(images), "--output", str(output), "--score-thr", "0", "--device",
             "cpu"]
    assert predict_openmmlab.main(flags) == 0
    entries = json.loads((output / "predictions.json").read_text())
    assert [entry["filename"] for entry in entries] == [str(path) for path in sorted(images.iterdir())]
    for entry in entries:
        with Image.open(output / entry["overlay"]) as overlay, Image.open(entry["filename"]) as image:
            assert overlay.size == image.size
        if "pixels" in entry:
            labels = np.asarray(Image.open(output / entry["labels"]))
            assert labels.shape == (64, 64)
            names = Config.fromfile(config).val_dataloader.dataset.metainfo.classes
            assert entry["pixels"] == {
                names[index]: int((labels == index).sum()) for index in range(11) if (labels == index).any()}
        else:
            scores = [found["score"] for found in entry["objects"]]
            assert scores == sorted(scores, reverse=True)
            for found in entry["objects"]:
                assert found["class"] == str(found["index"])
                assert mask_tools.decode(found["mask"]).shape == (64, 64)
                assert 0 <= found["box"][0] <= found["box"][2] <= 64


def test_unreadable_image_is_named_and_the_others_predicted(run, data, tmp_path, capsys):
    config, work_dir = run
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    good = str(data / "images" / "validation" / "00001.png")
    flags = [str(config), checkpoint(work_dir), good, str(bad), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert predict_openmmlab.main(flags) == 1
    assert re.search(rf"^error: cannot read image {bad}: .+$", capsys.readouterr().err, re.MULTILINE)
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [set(entry) & {"error", "overlay"} for entry in entries] == [{"overlay"}, {"error"}]


def test_same_names_are_refused(run, data, tmp_path, capsys):
    config, work_dir = run
    paths = [str(data / "images" / split / "00001.png") for split in ("train", "validation")]
    flags = [str(config), checkpoint(work_dir), *paths, "--output", str(tmp_path / "out")]
    assert predict_openmmlab.main(flags) == 2
    assert "would both be written as 00001.png" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


BAD = {
    "missing": ("", [], r"config \S+ does not exist"),
    "syntax": ("model = dict(", [], r"cannot read config \S+: .*"),
    "no-toolbox": ("a = 1", [], r"config \S+ is for no toolbox: set default_scope to mmdet or mmseg"),
    "data": (UPERNET, ["--cfg-options", "train_dataloader.dataset.data_root=/nonexistent"],
             r"cannot open the data of \S+: .*/nonexistent.*"),
    "backbone": (UPERNET, ["--cfg-options", "model.backbone.model_name=vmamba_tinny"],
                 r".*no model 'vmamba_tinny'.*near names: .*vmamba_tiny.*"),
    "levels": (UPERNET, ["--cfg-options", "model.backbone.out_indices=[0,1,2,7]"], r".*out_indices .*0 to 3.*"),
    "amp": (UPERNET, ["--amp"], r"--amp needs a CUDA device"),
    "resume": (UPERNET, ["--resume"], r"\S+ holds no run to resume"),
    "checkpoint": (UPERNET, ["--test", "/nonexistent.pth"], r"checkpoint /nonexistent.pth does not exist"),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="--amp is no error where there is a GPU")
@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, data, tmp_path, capsys):
    base, flags, message = BAD[case]
    config = tmp_path / "c.py"
    if isinstance(base, Path):
        write_config(config, base, data)
    elif base:
        config.write_text(base)
    assert train_openmmlab.main([str(config), "--work-dir", str(tmp_path / "run"), *flags]) == 2
    error = capsys.readouterr().err
    assert re.search(rf"^error: {message}$", error, re.MULTILINE), error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("*.pth"))


def test_two_processes(data, tmp_path):
    """torchrun starts two processes; each step takes a batch of each of them."""
    config = write_config(tmp_path / "c.py", UPERNET, data)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1",
                   "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "tools/train_openmmlab.py", str(config), "--work-dir", str(tmp_path / "run")],
        cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"Iter\(val\).*mIoU", done.stdout)
    assert "Distributed training: True" in done.stdout + done.stderr


def test_flops_tool(tmp_path, capsys):
    flags = ["--shape", "64", "96", "--device", "cpu", "--num-iter", "1", "--num-warm-iter", "1"]
    table = tmp_path / "r.csv"
    assert openmmlab_flops.main([str(MASK_RCNN), str(UPERNET), *flags, "--results-file", str(table)]) == 0
    header, *rows = (line.split(",") for line in table.read_text().splitlines())
    rows = [dict(zip(header, row, strict=False)) for row in rows]
    assert [(row["task"], row["size"]) for row in rows] == [("detection", "64x96"), ("segmentation", "64x96")]
    assert all(float(row["gflops"]) > 0.01 and float(row["median_ms"]) > 0 for row in rows)
    assert "time_ratio" in capsys.readouterr().out
    assert openmmlab_flops.main([str(UPERNET), *flags[:5], "--no-latency"]) == 0
    assert "median_ms" not in capsys.readouterr().out
    assert openmmlab_flops.main([str(UPERNET), "--shape", "8", "8"]) == 2
