"""Compile the kernels without a GPU, for sm_90 and sm_80, and count what matters in the machine code; prints JSON.

    python -m tests.kernels.support.compile_guard > tests/kernels/compile_guard.json     # record

Needs only Triton's wheel, which ships ptxas and nvdisasm. Run with TRITON_INTERPRET unset: interpreted kernels do not
compile.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vmamba_kernels._neighborhood import scores_backward_kernel, spread_kernel, weights_kernel, window_gather_kernel
from vmamba_kernels._scan_backward import scan_bwd_kernel
from vmamba_kernels._scan_forward import scan_fwd_kernel
from vmamba_kernels._ss2d_backward import ss2d_bwd_kernel_n1
from vmamba_kernels._ss2d_forward import ss2d_fwd_kernel_n1
from vmamba_kernels._ssd_backward import ssd_backward_kernel, ssd_group_kernel
from vmamba_kernels._ssd_forward import ssd_forward_kernel, ssd_states_kernel
from vmamba_kernels.configs import SCAN_REGISTERS, config, fits_own_memory, states_at_a_time
from vmamba_kernels.depthwise_conv import conv_bwd_kernel, conv_kernel
from vmamba_kernels.state_shapes import SCAN_TILE, TILE, tiles_per_state

BIN = Path(triton.__file__).parent / "backends/nvidia/bin"
FLOAT32 = {
    "dt_weight_ptr", "dt_bias_ptr", "a_log_ptr", "d_skip_ptr", "entry_ptr", "dbc_ptr", "dvec_ptr", "weight_ptr",
    "bias_ptr", "a_ptr", "skip_ptr", "running_ptr", "carry_ptr", "da_ptr", "start_ptr",
    "last_ptr", "ends_ptr", "decay_ptr", "dskip_ptr", "dparams_ptr",
}  # fmt: skip
SS2D = {
    "ORDER": 2, "K": 4, "HAS_C": True, "HAS_BIAS": True, "HAS_SKIP": True,
    "SAVE": True, "PRECISE": False, "FAST": True
}  # fmt: skip
SCAN = {
    **SS2D, "SOFTPLUS": True, "HAS_GATE": False,
    "N": 16, "C": 192, "EVERY": tiles_per_state(16), "OWN": fits_own_memory(16), "HAS_FIRST": False, "first_ptr": None,
    "scratch_ptr": None, "own_ptr": None, **dict.fromkeys(("x_sc", "y_sc", "dx_sc", "dy_sc", "dz_sc"), 1),
}  # fmt: skip


def _ss2d(kernel: str, D: int, R: int, even: bool) -> dict:
    blocks, stages, _ = config(kernel, D)
    return {**SS2D, "X_ROW": D, "DY_ROW": D, "D": D, "R": R, "SUB": blocks, "STAGES": stages, "EVEN": even}


def _scan(walk: str) -> dict:
    N = SCAN["N"]
    first = states_at_a_time(N, "first pass")
    return {**SCAN, "NB": states_at_a_time(N, walk), "FIRST": first, "R": 12}


def _ssd(tile: int, warps: int, **how) -> dict:
    """One head of VMamba-T on Mamba-2, of 16 channels and 64 states, in a group of 6."""
    return {
        "H": 24, "HEADS": 6, "P": 16, "N": 64, "BP": 16, "BN": 64, "T": tile, "HAS_SKIP": True, "HAS_BIAS": True,
        "SOFTPLUS": True, "HAS_START": True, "CAUSAL": True, "PRECISION": "bf16", "FAST": True, "WARPS": warps, **how,
    }  # fmt: skip


# windows of the first stage of A2Mamba-T
WINDOWS = {"D": 24, "BD": 32, "K": 11, "N": 32, "Q": 16, "VECTOR": 8, "FAST": True, "KK": 128, "WARPS": 2}

CONV = {"C": 96, "COLUMNS": 8, "BLOCK": 32, "HAS_BIAS": True, "SILU": False, "FLIP": False, "SHORTCUT": True}

TARGETS = (90, 80)
# name -> kernel, constants, elements (channel, visit) that one lane does per pass of the loop that is counted,
# and which loop that is: the longest, the innermost one over states, or none but the whole kernel
CASES = {
    "ss2d_fwd_d96_r6": (ss2d_fwd_kernel_n1, _ss2d("ss2d_fwd", 96, 6, True), TILE, max),
    "ss2d_fwd_d192_r12": (ss2d_fwd_kernel_n1, _ss2d("ss2d_fwd", 192, 12, True), TILE, max),
    "ss2d_fwd_d384_r24": (ss2d_fwd_kernel_n1, _ss2d("ss2d_fwd", 384, 24, False), 2 * TILE, max),
    "ss2d_fwd_d768_r48": (ss2d_fwd_kernel_n1, _ss2d("ss2d_fwd", 768, 48, False), TILE, max),
    "ss2d_bwd_d96_r6": (ss2d_bwd_kernel_n1, _ss2d("ss2d_bwd", 96, 6, True), TILE, max),
    "ss2d_bwd_d768_r48": (ss2d_bwd_kernel_n1, _ss2d("ss2d_bwd", 768, 48, False), TILE, max),
    "scan_fwd_r12": (scan_fwd_kernel, _scan("forward"), SCAN_TILE * 16, max),
    "scan_bwd_r12": (scan_bwd_kernel, _scan("backward"), SCAN_TILE * 2, min),
    "ssd_forward": (ssd_forward_kernel, _ssd(32, 4, LAST=True), 32 * 16 / 128, max),
    "ssd_states": (ssd_states_kernel, _ssd(64, 4, SAVE=True, ENDS=True, REVERSE=False), 64 * 16 / 128, max),
    "ssd_backward": (ssd_backward_kernel, _ssd(64, 4), 64 * 16 / 128, None),
    "ssd_group": (ssd_group_kernel, _ssd(64, 8), 64 * 16 / 256, max),
    "neighborhood_weights": (weights_kernel, {**WINDOWS, "WARPS": 4}, 16 * 11 * 11 / 128, None),
    "neighborhood_scores_backward": (scores_backward_kernel, WINDOWS, 16 * 11 / 64, max),
    "neighborhood_gather": (window_gather_kernel, {**WINDOWS, "DOTS": False}, 16 * 11 * 11 / 64, None),
    "neighborhood_dots": (window_gather_kernel, {**WINDOWS, "DOTS": True}, 16 * 11 / 64, max),
    "neighborhood_spread": (spread_kernel, WINDOWS, 16 * 11 / 64, max),
    "conv_add_fwd": (conv_kernel, CONV, 8, max),
    "conv_add_bwd": (conv_bwd_kernel, CONV, 8, max),
}


def machine_code(kernel, constants: dict, target: int = 90) -> tuple[str, str]:
    """SASS of the kernel for sm_<target>, and what ptxas reports about its resources."""
    warps = constants.get("WARPS", 1)
    constants = {n: v for n, v in constants.items() if n in kernel.arg_names}
    of_scan = "NB" in constants
    types, aligned = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            types[name] = "constexpr"
        elif name == "index_ptr":
            types[name] = "*i32"
        elif name.endswith("_ptr"):
            types[name] = "*fp32" if name in FLOAT32 else "*bf16"
            aligned[(i,)] = [["tt.divisibility", 16]]
        else:
            types[name] = "i64" if name == "reciprocal" else "i32"
            if re.match(r"d?[xyz]_s[blgk]$", name):
                aligned[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=aligned)
    options = {"num_warps": warps, "num_stages": 1, "maxnreg": SCAN_REGISTERS if of_scan else None}
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "k.cubin"), Path(folder, "k.ptx")
        cubin.write_bytes(compiled.asm["cubin"])
        ptx.write_text(compiled.asm["ptx"])
        sass = subprocess.run([BIN / "nvdisasm", "-c", cubin], capture_output=True, text=True, check=True).stdout
        name = f"sm_{target}" + "a" * (target == 90)
        command = [BIN / "ptxas", "-v", f"--gpu-name={name}", ptx, "-o", Path(folder, "again.cubin")]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sass, report


def opcodes(text: str) -> list[str]:
    """Names of the instructions in some lines of SASS."""
    found = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)", text, re.M)
    return [code for code in found if code != "NOP"]


def loops(sass: str) -> list[list[str]]:
    """Opcodes of every loop: what lies between a label and a branch back to it."""
    lines, labels, found = sass.splitlines(), {}, []
    for i, line in enumerate(lines):
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = i
        if (back := re.search(r"BRA `\((\.L_x_\d+)\)", line)) and back[1] in labels:
            found.append(opcodes("\n".join(lines[labels[back[1]] : i + 1])))
    return [loop for loop in found if len(loop) > 64]


def inspect(name: str, target: int = 90) -> dict:
    """Counts of one case."""
    kernel, constants, elements, which = CASES[name]
    sass, report = machine_code(kernel, constants, target)
    loop = opcodes(sass) if which is None else which(loops(sass), key=len)
    return {
        "registers": int(re.search(r"Used (\d+) registers", report)[1]),
        "spilled_bytes": int(re.search(r"(\d+) bytes spill stores", report)[1]),
        "instructions_per_element": round(len(loop) / elements, 1),
        "shuffles": loop.count("SHFL"),
        "own_memory_bytes": int(found[1]) if (found := re.search(r"(\d+) bytes smem", report)) else 0,
    }


if __name__ == "__main__":
    json.dump({f"sm_{t}": {name: inspect(name, t) for name in CASES} for t in TARGETS}, sys.stdout, indent=4)
    print()
