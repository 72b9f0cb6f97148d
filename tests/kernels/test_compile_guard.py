import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RECORDED = json.loads((HERE / "compile_guard.json").read_text())

# the general kernels keep a few values of a tile's frame in local memory, which costs less than states that rest there;
# the backward's loop over states has none. What the heads of a group share, and Mamba-2's backward, take all registers
# of sm_80
SPILLS_ALLOWED = {"scan_fwd_r12", "scan_bwd_r12", "ssd_backward", "ssd_group"}


@pytest.fixture(scope="module")
def compiled():
    pytest.importorskip("triton")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "tests.kernels.support.compile_guard"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDED["sm_90"])
@pytest.mark.parametrize("target", RECORDED)
def test_machine_code_is_as_recorded(target, name, compiled):
    got, recorded = compiled[target][name], RECORDED[target][name]
    if name in SPILLS_ALLOWED:
        assert got["spilled_bytes"] <= recorded["spilled_bytes"] * 1.1
    else:
        assert got["spilled_bytes"] == 0
    # more shuffles would mean a recurrence across lanes; a backward has those that add up its sums over channels, and
    # the general forward, whose loop is that over tiles, those that bring a tile into its lanes
    assert got["shuffles"] <= recorded["shuffles"]
    if "fwd" in name and name != "scan_fwd_r12":
        assert got["shuffles"] == 0
    # beyond what Triton takes at launch; a second one would be read where the first was written
    assert got["own_memory_bytes"] == recorded["own_memory_bytes"]
    assert got["instructions_per_element"] == pytest.approx(recorded["instructions_per_element"], rel=0.1)
