#!/usr/bin/env python3
"""Run timm's own, unmodified model tests on our models, and check how many passed.

    python tests/run_timm_suite.py                      what `make test` runs
    python tests/run_timm_suite.py 'vmamba_*' -- -x     other models, and options for pytest

The tests come with timm's source distribution, which is fetched once, at the version installed here, into build/.
Left out are the tests that download pretrained weights.
"""

import argparse
import fnmatch
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import timm

import vmamba  # noqa: F401  (registers the models)

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "timm_suite"
MODELS = (
    "test_vmamba", "vmamba_tiny_s1l8", "test_efficientvmamba", "test_vim", "test_spatial_mamba", "test_msvmamba",
    "test_plainmamba", "test_localvmamba", "test_localvim", "test_localvim_midcls", "test_mlla", "test_videomamba",
    "test_res_vmamba", "test_mambavision", "test_vssd", "test_vmamba_m2", "test_rsmamba", "test_a2mamba",
    "test_vim2",
)
# families whose forward_features() gives tokens instead of a map
TOKEN_FAMILIES = ("vim", "plainmamba", "localvim", "videomamba", "rsmamba")
# tests of timm 1.0.31 that run once per architecture: forward, backward, TorchScript, feature maps, 2 of
# forward_intermediates, pruning, FX forward, FX backward, scripted FX; test_model_default_cfgs runs once per tag
TESTS_PER_ARCHITECTURE = 10
TESTS_PER_TAG = 1
# one of those, the one on feature maps, asks for maps of several sizes and leaves token models out
TESTS_NOT_FOR_TOKENS = 1


def fetch_tests() -> Path:
    """Folder with the tests and pytest settings of the installed timm's source distribution."""
    name = f"timm-{timm.__version__}"
    folder = BUILD / name
    if not (folder / "tests" / "test_models.py").is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "timm",
                   "--dest", str(BUILD), f"timm=={timm.__version__}"]
        subprocess.run(command, check=True)
        with tarfile.open(BUILD / f"{name}.tar.gz") as archive:
            # not the sources beside them: the installed timm is the one to test
            wanted = [m for m in archive.getmembers() if m.name.startswith((f"{name}/tests/", f"{name}/pyproject"))]
            archive.extractall(BUILD, wanted, filter="data")
    return folder


def expected_count(globs: list[str]) -> int:
    """How many tests timm has for the registered models that match one of `globs`, by the number of their tags."""
    def count(**kwargs: bool) -> int:
        return sum(matches(name.partition(".")[0]) for name in timm.list_models(**kwargs))

    def matches(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, g) for g in globs)

    tokens = sum(map(matches, token_models()))
    return TESTS_PER_ARCHITECTURE * count() + TESTS_PER_TAG * count(include_tags=True) - TESTS_NOT_FOR_TOKENS * tokens


def token_models() -> list[str]:
    """Registered models of the token families."""
    return [name for family in TOKEN_FAMILIES for name in timm.list_models(module=family)]


def run_tests(folder: Path, globs: list[str], pytest_args: list[str]) -> dict[str, int]:
    """Run the tests in a process of their own and return the counts "tests", "failures", "errors" and "skipped"."""
    report = BUILD / "report.xml"
    report.unlink(missing_ok=True)
    paths = [ROOT / "tests", ROOT, ROOT / "kernels"]
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "TIMM_SUITE_IMPORT": "vmamba",
        "TIMM_SUITE_MODELS": ",".join(globs),
        "TIMM_SUITE_TOKENS": ",".join(token_models()),
        "HF_HUB_OFFLINE": "1",
    }
    env.pop("GITHUB_ACTIONS", None)  # timm leaves tests out where it is set
    command = [sys.executable, "-m", "pytest", "-p", "timm_suite", "-c", str(folder / "pyproject.toml"),
               "--rootdir", str(folder), str(folder / "tests" / "test_models.py"), "-k", "not pretrained",
               "--durations=5", f"--junitxml={report}", *pytest_args]
    code = subprocess.run(command, cwd=folder, env=env).returncode
    if code not in (0, 1) or not report.is_file():
        raise SystemExit(f"pytest could not run timm's tests (exit code {code})")
    suite = ElementTree.parse(report).getroot().find("testsuite")
    return {key: int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="GLOB",
                        help=f"architectures to test (default: {' '.join(MODELS)}); pytest's options follow after --")
    own, pytest_args = sys.argv[1:], []
    if "--" in own:
        cut = own.index("--")
        own, pytest_args = own[:cut], own[cut + 1:]
    args = parser.parse_args(own)
    expected = expected_count(args.models)
    counts = run_tests(fetch_tests(), args.models, pytest_args)
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    failed = counts["failures"] + counts["errors"]
    print(f"timm {timm.__version__}'s tests on {', '.join(args.models)}: {expected} expected")
    print(f"{passed} passed, {failed} failed, {counts['skipped']} skipped")
    return 0 if passed == expected and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
