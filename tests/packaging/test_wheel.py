"""What the distribution holds, and what it says about itself."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import test_matrix

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest brings there

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


# what an installation without extras does not bring
EXTRAS_ONLY = ("albumentations", "av", "matplotlib", "mlxtend", "skimage", "sklearn", "tensorboard", "torchmetrics",
               "mmengine", "mmcv", "mmdet", "mmseg", "pycocotools", "tifffile")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source distribution, built from a copy of the sources, so that nothing is left behind in the checkout."""
    source = tmp_path_factory.mktemp("source") / "source"
    for name in ("vmamba", "kernels", "tests", "tools"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    done = subprocess.run(
        [sys.executable, "-c", "from setuptools import build_meta; build_meta.build_sdist('dist')"], cwd=source,
        capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next((source / "dist").glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel_file(sdist, tmp_path_factory):
    """The wheel of that source distribution, as `python -m build` makes it."""
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index",
         "--wheel-dir", str(folder), str(sdist)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture
def wheel(wheel_file):
    with zipfile.ZipFile(wheel_file) as archive:
        yield archive


def packaged():
    """Files of the two packages: their path in the wheel, and in the checkout."""
    return {
        str(path.relative_to(base)): str(path.relative_to(ROOT))
        for package, base in {"vmamba": ROOT, "vmamba_kernels": ROOT / "kernels"}.items()
        for path in (base / package).rglob("*") if path.suffix == ".py" or path.name == "py.typed"}


def test_wheel_holds_the_two_packages_and_nothing_else(wheel):
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == set(packaged())
    assert {"vmamba/py.typed", "vmamba_kernels/py.typed", "vmamba/__init__.py", "vmamba/env.py"} <= held


def test_sdist_holds_the_two_packages_and_no_tests(sdist):
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames() if not archive.getmember(name).isdir()}
    own = {name for name in held if ".egg-info/" not in name}
    about = {"pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "PKG-INFO", "setup.cfg"}
    assert own == {*packaged().values(), *about}


def test_installed_wheel_works_without_the_extras(wheel_file, tmp_path):
    """Away from the checkout, with everything that only extras bring out of reach."""
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site),
         str(wheel_file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([sys.executable, "-c", f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS_ONLY!r}))      # None: importing it fails as if it were not installed
import timm, torch, vmamba, vmamba.env, vmamba_kernels
print(vmamba.__file__, vmamba_kernels.__file__)
print(tuple(timm.create_model("test_vmamba", num_classes=3).eval()(torch.zeros(1, 3, 32, 48)).shape))
print(vmamba.env.report()["backends"]["cpu"]["torch"])
"""], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == [
        f"{site}/vmamba/__init__.py {site}/vmamba_kernels/__init__.py", "(1, 3)", "runs", ""]


def test_classifiers_name_every_python_from_the_oldest_on(wheel):
    metadata = message_from_bytes(wheel.read(next(n for n in wheel.namelist() if n.endswith("/METADATA"))))
    assert metadata["Requires-Python"] == ">=3.10"
    named = re.findall(r"Python :: (3\.\d+)$", "\n".join(metadata.get_all("Classifier")), re.MULTILINE)
    assert named == list(test_matrix.PYTHONS) == ["3.10", "3.11", "3.12", "3.13"]


def test_metadata(wheel):
    name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = message_from_bytes(wheel.read(name))
    assert metadata["Name"] == "vmamba"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert any(n.endswith("licenses/LICENSE") for n in wheel.namelist())
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert needed == PROJECT["dependencies"] == ["torch>=2.8", "timm>=1.0.31"]


def test_constraints_pin_every_package_the_project_names():
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, separator, version = line.partition("==")
            assert separator, f"not an exact version: {line}"
            pinned[name.lower().replace("_", "-")] = version
    extras = PROJECT["optional-dependencies"].values()
    for requirement in [*PROJECT["dependencies"], *(r for extra in extras for r in extra)]:
        name = requirement.partition(">")[0].lower().replace("_", "-")
        assert name in pinned, f"constraints.txt does not pin {name}"


def test_nothing_names_a_package_index():
    files = [ROOT / name for name in ("pyproject.toml", "constraints.txt", "Makefile", ".ci/run")]
    for path in files:
        text = path.read_text()
        assert not [word for word in ("index-url", "find-links", "trusted-host") if word in text], path
