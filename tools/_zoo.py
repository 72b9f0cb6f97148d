"""The table of all models, and that of results published on other data; `tools/performance_tables.py` writes both."""

import re
import sys
from collections.abc import Iterable

import _bench
import timm
from _results import MODES, Row, counts, is_ours, published, published_top1, read_rows, select, zoo_models

# model -> the fixture, in tests/goldens, of the published implementation that a test compares it with
FIXTURES = {
    "vmamba_tiny_s1l8": "vmamba/vmamba_tiny_s1l8", "vmamba_tiny_s2l5": "vmamba/vmamba_tiny_s2l5",
    "vmamba_base_s2l15": "vmamba/vmamba_base_s2l15", "vmamba_tiny_v0": "vmamba/vanilla_vmamba_tiny",
    "efficientvmamba_tiny": "efficientvmamba/efficientvmamba_tiny", "msvmamba_tiny": "msvmamba/msvmamba_tiny",
    "spatial_mamba_tiny": "spatialmamba/spatialmamba_tiny", "vim_tiny_patch16_224": "vim/vim_tiny_midclstok",
    "videomamba_tiny": "videomamba/videomamba_tiny_k400head_f4_r112", "localvim_tiny": "localvim/local_vim_tiny",
    "localvmamba_tiny": "localvmamba/local_vmamba_tiny", "plainmamba_l1": "plainmamba/plainmamba_l1",
    "mlla_tiny": "mlla/mlla_tiny_224", "a2mamba_nano": "a2mamba/a2mamba_n", "vssd_tiny": "vssd/vssd_tiny_224",
    "mambavision_tiny": "mambavision/mambavision_t_224", "res_vmamba_small": "resvmamba/resvmamba_s_trunk",
    "rsmamba_base": "rsmamba/rsmamba_b_shuffle_gate", "efficientvim_m1": "efficientvim/efficientvim_m1",
    "efficientvim_m1_dist": "efficientvim/efficientvim_m1_dist",
}
# names of models that are others' or nobody's, and what they share no fixture with
ALIASES = {"vmamba_tiny": "vmamba_tiny_s1l8", "vmamba_base": "vmamba_base_s2l15"}
OURS = ("test_*", "vmamba_nano", "res_vmamba_tiny", "res_vmamba_base")
NOTES = {
    "vmamba_tiny": "VMamba-T of the paper, the same as `vmamba_tiny_s1l8`",
    "vmamba_small": "VMamba-S of the paper, the same as `vmamba_small_s2l15`",
    "vmamba_base": "VMamba-B of the paper, the same as `vmamba_base_s2l15`",
    "vmamba_nano": "ours, for CPUs and small images; no weights",
    "efficientvmamba_small": "64 channels wide, as trained; the paper's table says 96",
    "videomamba_middle": "for clips and images; distilled",
    "videomamba_base": "for clips and images; weights not released",
    "localvim_small": "weights not released",
    "localvim_small_midcls": "class token in the middle, no rotation; weights not released",
    "localvmamba_tiny": "weights not released",
    "msvmamba_v3_base": "on the trunk of VMamba's second release, gated",
    "res_vmamba_tiny": "ours; no weights",
    "res_vmamba_small": "corrected: learned projections in the shortcuts; no weights",
    "res_vmamba_base": "ours; no weights",
    "mambavision_large2_512": "after ImageNet-21K, 512 x 512 images",
    "mambavision_large3_256": "after ImageNet-21K, 256 x 256 images",
    "mambavision_large3_512": "after ImageNet-21K, 512 x 512 images",
    "vim2_tiny": "from the paper alone, which has 20 M; no weights",
    "vim2_small": "from the paper alone, which has 43 M; no weights",
    "vim2_base": "from the paper alone, which has 74 M; no weights",
}
NOTES_OF = (  # the first pattern that fits, where NOTES says nothing
    (r"test_.*", "ours, for tests; no weights"), (r"vmamba_\w+_v0", 'first release ("vanilla")'),
    (r"vmamba_\w+_m2", "on Mamba-2; never trained by its authors"),
    (r"msvmamba_v3_\w+", "on the trunk of VMamba's second release"),
    (r"vim_\w+_stride8_224", "fine-tuned on overlapping patches"),
    (r"videomamba_\w+", "for clips and images"), (r"localvim_\w+_midcls", "class token in the middle, no rotation"),
    (r"rsmamba_\w+", "45 classes, those of NWPU-RESISC45"), (r"(efficientvim|mambaout)_.*", "timm's own"),
)  # fmt: skip
TIMMS = {  # where timm has its models from
    "efficientvim": ("https://github.com/mlvlab/EfficientViM", "MIT"),
    "mambaout": ("https://github.com/yuweihao/MambaOut", "Apache-2.0"),
}
COLUMNS = (
    "model", "parameters", "multiply-adds (G)", "ImageNet-1K top-1, published", "inference, images/s",
    "training, images/s", "training, MiB", "parity", "licence of the origin", "")


def family(model: str) -> str:
    """File that has the model."""
    return timm.model_entrypoint(model).__module__.rpartition(".")[2]


def origin(model: str) -> tuple[str, str]:
    """Address of the authors' code, and what the model's file says of its licence; empty where there is none."""
    if not is_ours(model):
        return TIMMS[family(model)]
    doc = " ".join((sys.modules[timm.model_entrypoint(model).__module__].__doc__ or "").split())
    found = re.search(r"Origin(?: of the weights)?: (https://\S+) \(([^):]+)", doc)
    return (found[1], found[2]) if found else ("", "")


def note(model: str) -> str:
    """What there is to say of the model."""
    general = next((text for pattern, text in NOTES_OF if re.fullmatch(pattern, model)), "")
    return NOTES.get(model, general)


def parity(model: str) -> str:
    """Whether a fixture of the published implementation is compared with the model, or with one of its family."""
    if ALIASES.get(model, model) in FIXTURES:
        return "fixture"
    if model.startswith("test_") or model in OURS:
        return "ours"
    if family(model) == "vim2":
        return "no public code"
    if any(family(other) == family(model) for other in FIXTURES):
        return "fixture of the family"
    return "no fixture" if is_ours(model) else "timm's"


def short_device(row: Row) -> str:
    """The name of a GPU without its maker and memory: "H100"."""
    return row["device"].removeprefix("NVIDIA ").split()[0]


def measured(model: str, bench: str, column: str) -> str:
    """A column of the fastest mode's last row at batch 128 and 224 x 224 pixels; or nothing.

    Returns:
        The value, and in brackets the GPU and the mode.
    """
    rows = select(read_rows("models_gpu"), model=model, bench=bench, batch_size="128", img_size="224x224",
                  amp_dtype="bfloat16")
    last = {row["mode"]: row for row in sorted(rows, key=lambda row: row["date"])}
    if not last:
        return ""
    row = max(last.values(), key=lambda row: float(row["img_per_s"]))
    return f"{float(row[column]):,.0f} ({short_device(row)}, {MODES[row['mode']]})"


def accuracy(model: str) -> str:
    """Published top-1, with a link to its source."""
    value = published_top1(model)
    if not value:
        return ""
    rows = select(published(), model=model, dataset="ImageNet-1K")
    source = link(rows[0]["source"]) if not is_ours(model) else origin(model)[0]
    return f"[{value}]({source})"


def link(source: str) -> str:
    """Address of a source: an arXiv or DOI number, or a repository on GitHub."""
    kind, _, number = source.partition(":")
    base = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}.get(kind)
    return base + number if base else f"https://github.com/{source}"


def zoo() -> str:
    """Every model: what it has, what was published and measured of it, and whether it is what its authors' is."""
    known = counts()
    lines = []
    for model in zoo_models():
        row = known.get(model, {})
        values = (
            f"`{model}`", f"{int(row['params']):,}" if row else "", f"{int(row['macs']) / 1e9:.2f}" if row else "",
            accuracy(model), measured(model, "inference", "img_per_s"), measured(model, "train", "img_per_s"),
            measured(model, "train", "peak_memory_mb"), parity(model), origin(model)[1], note(model))
        lines.append(dict(zip(COLUMNS, values, strict=True)))
    return _bench.markdown_table(COLUMNS, lines)


def beyond() -> str:
    """What was published of the models on other data than ImageNet: one line for each model, data set and setting."""
    tables = []
    for dataset in dict.fromkeys(row["dataset"] for row in published() if row["dataset"] != "ImageNet-1K"):
        rows = select(published(), dataset=dataset)
        metrics = list(dict.fromkeys(row["metric"] for row in rows))
        columns = ("model", "setting", *metrics, "source")
        tables.append(f"### {dataset}\n\n" + _bench.markdown_table(columns, _lines(rows)))
    return "\n\n".join(tables)


def _lines(rows: Iterable[Row]) -> list[dict[str, str]]:
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        key = (f"`{row['model']}`", row["setting"], f"[{row['source']}]({link(row['source'])})")
        line = lines.setdefault(key, dict(zip(("model", "setting", "source"), key, strict=True)))
        line[row["metric"]] = row["value"]
    metrics = {metric for line in lines.values() for metric in line}
    return [{metric: line.get(metric, "") for metric in metrics} for line in lines.values()]
