"""`python -m vmamba.env`: what a bug report needs, also where something is missing or broken."""
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import vmamba
from vmamba import env

ROOT = Path(__file__).resolve().parents[2]


def run_module(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "vmamba.env", *arguments], capture_output=True, text=True,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PATH": "", "OMP_NUM_THREADS": "1", "HF_TOKEN": "secret"})


def test_module_prints_versions_and_backends():
    done = run_module()
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert lines["vmamba"] == vmamba.__version__
    assert lines["torch"] == torch.__version__
    assert lines["timm"] == metadata.version("timm")
    assert re.fullmatch(r"3\.\d+\.\d+.*", lines["python"])
    assert lines["location"] == str(ROOT / "vmamba")
    assert lines["backend reference on cpu"] == lines["backend torch on cpu"] == "runs"
    assert "OMP_NUM_THREADS=1" in done.stdout.splitlines()


def test_json_has_the_same_and_no_secrets():
    done = run_module("--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) >= {"python", "platform", "packages", "torch_cuda", "gpus", "cpu", "extras", "backends"}
    assert found["packages"]["torch"] == torch.__version__
    assert "secret" not in done.stdout


def test_missing_packages_are_named(monkeypatch):
    def version(name):
        if name in ("triton", "mlxtend"):
            raise metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(env.metadata, "version", version)
    monkeypatch.setattr(env.metadata, "requires", lambda _: [
        "torch>=2.8", 'mlxtend>=0.23; extra == "train"', 'tqdm>=4; extra == "train"',
        'types-PyYAML; python_version >= "3.10" and extra == "dev"'])
    found = env.report()
    assert found["packages"]["triton"] == "not installed"
    assert found["extras"] == {"train": ["mlxtend"], "dev": []}


def test_a_checkout_that_is_not_installed_is_no_error(monkeypatch, capsys):
    def requires(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(env.metadata, "requires", requires)
    assert env.main([]) == 0
    assert "extras: unknown, vmamba is not installed" in capsys.readouterr().out


def test_a_broken_backend_says_why(monkeypatch, capsys):
    def broken(*_, backend, **__):
        if backend == "torch":
            raise OSError("libsomething.so:\n no such file")
        return torch.full((1,), float("nan"))

    monkeypatch.setattr(env, "selective_scan", broken)
    assert env.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "backend torch on cpu: OSError: libsomething.so: no such file" in lines
    assert "backend reference on cpu: gives values that are not finite" in lines


@pytest.mark.gpu
def test_gpu_is_named_and_triton_runs():
    found = env.report()
    assert torch.cuda.get_device_name(0) in found["gpus"][0]
    assert found["backends"]["cuda"]["triton"] == "runs"
