#!/usr/bin/env python3
r"""Trains, resumes and tests detectors and segmentors: mmengine's Runner on a config of mmdet or mmseg.

    python tools/train_openmmlab.py configs/mmdet/mask_rcnn_vmamba_nano_fpn_digit_scenes.py
    python tools/train_openmmlab.py CONFIG --resume                     # from the last checkpoint of its work directory
    python tools/train_openmmlab.py CONFIG --test runs/openmmlab/NAME/best.pth
    python tools/train_openmmlab.py CONFIG --amp --cfg-options train_dataloader.batch_size=4
    torchrun --nproc-per-node 8 tools/train_openmmlab.py CONFIG --amp

Which toolbox it is, the config's default_scope says. The work directory holds the config, the log, scalars.json and
the checkpoints; one that holds a run is not trained into again unless the run is resumed.
"""
import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from _openmmlab import config_errors, existing_checkpoint, load_config, without_sync_batchnorm

from vmamba.errors import UserError, require, tool

TORCHRUN = "LOCAL_RANK"         # set in the processes that torchrun starts
LAST = "last_checkpoint"        # mmengine writes the path of the newest checkpoint into it


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("config", metavar="CONFIG", help="config of mmdet or mmseg")
    add("--work-dir", metavar="DIR", help="default: runs/openmmlab/ and the config's name")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--resume", nargs="?", const="", metavar="FILE",
                      help="continue a run, from its last checkpoint or from this one")
    what.add_argument("--test", metavar="FILE", help="only test this checkpoint on the config's test data")
    add("--amp", action="store_true", help="mixed precision with loss scaling (CUDA only)")
    add("--cfg-options", nargs="+", action=require("mmengine", "openmmlab").DictAction, default={}, metavar="K=V",
        help="set values in the config, such as model.backbone.frozen_stages=2")
    return parser.parse_args(argv)


def prepare(args: argparse.Namespace) -> Any:
    """The config as the flags ask for it.

    Raises:
        UserError: config, checkpoint or work directory do not fit the flags.
    """
    config = load_config(args.config, args.cfg_options)
    config.work_dir = args.work_dir or config.get("work_dir") or str(Path("runs/openmmlab") / Path(args.config).stem)
    work_dir = Path(config.work_dir)
    if args.test:
        config.load_from = existing_checkpoint(args.test)
    elif args.resume is None and (work_dir / LAST).exists():
        raise UserError(f"{work_dir} already holds a run: continue it with --resume, or give another --work-dir")
    elif args.resume == "" and not (work_dir / LAST).exists():
        raise UserError(f"{work_dir} holds no run to resume")
    elif args.resume is not None:
        config.resume = True
        config.load_from = existing_checkpoint(args.resume or (work_dir / LAST).read_text().strip())
    if args.amp:
        if not torch.cuda.is_available():
            raise UserError("--amp needs a CUDA device")
        config.optim_wrapper.type = "AmpOptimWrapper"
        config.optim_wrapper.loss_scale = "dynamic"
    config.launcher = "pytorch" if TORCHRUN in os.environ else "none"
    if not torch.cuda.is_available():
        without_sync_batchnorm(config)
        # what mmengine chooses by itself for several processes names a GPU for each
        config.setdefault("model_wrapper_cfg", {
            "type": "MMDistributedDataParallel", "device_ids": None, "broadcast_buffers": False})
    return config


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    config = prepare(args)
    runner_type = require("mmengine.runner", "openmmlab").Runner
    if config.launcher == "pytorch" and not torch.cuda.is_available():
        torch.distributed.init_process_group("gloo")
    try:
        with config_errors(f"cannot use config {args.config}"):
            runner = runner_type.from_cfg(config)
        with config_errors(f"cannot open the data of {args.config}"):
            _ = [runner.test_loop] if args.test else [runner.train_loop, runner.val_loop]   # built when first asked for
        if args.test:
            metrics = runner.test()
            print(json.dumps({name: round(float(value), 6) for name, value in metrics.items()}))
        else:
            runner.train()
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # a rank that leaves early may meet its own threads in the group's destructor
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
