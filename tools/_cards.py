"""The text of model cards, in the form of timm's on the Hugging Face Hub, from what the code says of a model."""

import inspect
import re
import sys
from functools import cache, cached_property
from typing import Any

import _bench
import timm
from _counting import count
from _results import Row, is_ours, read_rows, select

from vmamba._timm import generate_readme

# data sets by their part of a tag: the name, which in lower case is what the Hub calls them
DATASETS = {"in1k": "ImageNet-1K", "k400": "Kinetics-400", "ssv2": "Something-Something-V2", "breakfast": "Breakfast",
            "coin": "COIN", "resisc45": "NWPU-RESISC45"}
BENCHMARKS = ("models_gpu", "models_cpu")   # in benchmarks/
STEPS = {"inference": "inference", "train": "training"}


@cache
def configurations() -> dict[str, Any]:
    """Every configuration of the suite, `architecture.tag`, as timm keeps it; in alphabetical order."""
    found = {}
    for name in filter(is_ours, timm.list_models()):
        cfgs = getattr(sys.modules[timm.model_entrypoint(name).__module__], "default_cfgs", {})
        if name in cfgs:
            found |= {f"{name}.{tag}": cfg for tag, cfg in cfgs[name].cfgs.items()}
    return dict(sorted(found.items()))


def first_paragraph(text: str | None) -> str:
    """The first paragraph of a docstring as one line of Markdown."""
    return " ".join((text or "").strip().partition("\n\n")[0].split()).replace("``", "`")


class Card:
    """The card of one configuration.

    Attributes:
        name: `architecture.tag`.
        cfg: its `timm` configuration.
        about: first sentence of the model file.
        paper: authors, title, place and arXiv number, from there.
        origin: address of the authors' code, "" where the file says none of weights.
        terms: what the file says of the licence of the weights.

    Raises:
        ValueError: the model file names no paper, or the tag no known data set.
    """

    def __init__(self, name: str):
        self.name = name
        self.architecture, _, self.tag = name.partition(".")
        self.cfg = configurations()[name]
        module = timm.model_entrypoint(self.architecture).__module__
        doc = sys.modules[module].__doc__
        line = " ".join((doc or "").split())
        paper = re.search(r"Papers?: (.*?arXiv:\d{4}\.\d{5})\.", line)
        if paper is None:
            raise ValueError(f"the docstring of {module} has no sentence 'Paper: WHO, \"TITLE\", arXiv:NNNN.NNNNN.'")
        origin = re.search(r"Origin of the weights: (\S+) \((.+?)\)\.", line)
        self.about, self.paper = first_paragraph(doc), paper[1]
        self.origin, self.terms = (origin[1], origin[2]) if origin else ("", "")
        data = [part for part in self.tag.split("_") if part in DATASETS]
        if self.untrained == bool(data):
            raise ValueError(f"the tag of {name} must be 'untrained', or name one of {', '.join(DATASETS)}")
        self.dataset = DATASETS[data[0]] if data else ""

    @property
    def untrained(self) -> bool:
        return self.tag == "untrained"

    @property
    def weights(self) -> str:
        """Where weights are: "none", "not released", "by hand", or "download", which timm does."""
        if self.untrained:
            return "none"
        if "weights not released" in (self.cfg.notes or ()):
            return "not released"
        return "download" if self.cfg.has_weights else "by hand"

    @property
    def frames(self) -> int:
        """Frames of the clips it was trained on, 0 for images."""
        found = re.search(r"_f(\d+)(?:_|$)", self.tag)
        return int(found[1]) if found else 0

    @property
    def task(self) -> str:
        """The Hub's name of what it does."""
        return "video-classification" if self.frames else "image-classification"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """[1, C, H, W] of an image, or [1, C, T, H, W] of a clip."""
        channels, height, width = self.cfg.input_size
        return (1, channels, self.frames, height, width) if self.frames else (1, channels, height, width)

    @cached_property
    def model(self) -> Any:
        """The model on the meta device."""
        return timm.create_model(self.name, device="meta", **({"num_frames": self.frames} if self.frames else {}))

    def fields(self) -> dict[str, Any]:
        """What `timm.models.push_to_hf_hub` takes as a model card."""
        license = "apache-2.0" if self.untrained else self.cfg.license
        named = {"license_name": "none-stated", "license_link": self.origin} if license == "other" else {}
        return {"tags": [self.task, "timm", "vmamba"], "license": license, **named,
                "description": self.description(), "details": self.details(), "usage": "\n" + self.usage()}

    def text(self) -> str:
        """The whole card."""
        readme = generate_readme(self.fields(), self.name, task_name=self.task)
        return f"{readme}\n{self.accuracy()}\n\n{self.speed()}\n\n## Citation\n\n{self.citation()}\n"

    def description(self) -> str:
        """What the model is, and what its weights are."""
        variant = first_paragraph(inspect.getdoc(timm.model_entrypoint(self.architecture)))
        if "%" in variant:  # numbers of the default weights, which these need not be
            variant = re.split(r": [\d.]+ M parameters|, [\d.]+ %", variant)[0] + "."
        what = {
            "none": "There are no weights of it: it starts from random ones and is to be trained.",
            "not released": "Its authors published its accuracy and not its weights: here it starts from random ones.",
            "by hand": f"The weights are those of its authors, {self.training()}; they are to be downloaded by hand, "
                       f"from a page that <{self.cfg.origin_url}> names.",
            "download": f"The weights are those of its authors, {self.training()}; timm downloads them from where they "
                        "published them.",
        }[self.weights]
        return f"{self.about}\n\n{variant} {what} The implementation is that of the package `vmamba`."

    def training(self) -> str:
        parts = self.tag.split("_")
        before = {"in21k": " after ImageNet-21K", "mask": " after masked pre-training", "mesa": " with MESA"}
        return f"trained on {self.dataset}" + "".join(text for part, text in before.items() if part in parts)

    def details(self) -> dict[str, Any]:
        """The section "Model Details"."""
        found: dict[str, Any] = {
            "Model Type": f"{'Video' if self.frames else 'Image'} classification / feature backbone",
            "Model Stats": stats(self.model, self.input_shape), "Papers": self.papers()}
        if self.cfg.origin_url:
            found["Original"] = self.cfg.origin_url
        if self.untrained:
            return found | {"License": "that of the implementation, Apache-2.0, as there are no weights"}
        terms = f"{self.terms}, see {self.origin}"
        if self.cfg.license == "other":
            terms = ("**none is stated by their authors**, so nothing permits their use, change or distribution; ask "
                     f"them, at {self.origin}")
        if self.weights == "not released":
            terms = f"there are none; the authors' repository: {terms}"
        found["License of the weights"] = terms
        found["Dataset"] = self.dataset
        return found | ({"Pretrain Dataset": "ImageNet-21K"} if "in21k" in self.tag.split("_") else {})

    def papers(self) -> list[str]:
        return [f"{self.cfg.paper_name}: https://arxiv.org/abs/{self.cfg.paper_ids.removeprefix('arXiv:')}"]

    def usage(self) -> str:
        """The section "Model Usage": three blocks that run one after the other."""
        kind = "Clip" if self.frames else "Image"
        classify = self.clip() if self.frames else image_classification(self.create(), self.cfg.num_classes)
        blocks = {f"{kind} classification": classify, "Feature map extraction": self.features(),
                  f"{kind} embeddings": self.embeddings()}
        return "\n\n".join(f"### {title}\n\n```python\n{code}\n```" for title, code in blocks.items())

    def create(self, *arguments: str) -> str:
        """The call that builds the model."""
        weights = {
            "download": ["pretrained=True"],
            "by hand": ["pretrained=True", 'pretrained_cfg_overlay=dict(file="DOWNLOADED_FILE")']}.get(self.weights, [])
        frames = [f"num_frames={self.frames}"] if self.frames else []
        given = [*weights, *frames, *arguments]
        line = ", ".join([f'model = timm.create_model("{self.name}"', *given]) + ").eval()"
        return line if len(line) <= 110 else (
            f'model = timm.create_model(\n    "{self.name}", ' + ", ".join(given) + ").eval()")

    def clip(self) -> str:
        _, channels, frames, height, width = self.input_shape
        return f'''import timm
import torch
import vmamba  # registers the models

{self.create()}
config = timm.data.resolve_model_data_config(model)
mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1, 1) for key in ("mean", "std"))

# RGB frames spread over the whole video, values from 0 to 1
clip = torch.rand(1, {channels}, {frames}, {height}, {width})
x = (clip - mean) / std
with torch.inference_mode():
    logits = model(x)                                   # [1, {self.cfg.num_classes}]
probabilities, classes = logits.softmax(dim=1).topk(5)'''

    def features(self) -> str:
        """Maps at the family's own choice of depths; their size is the image's over the stride."""
        info = timm.create_model(self.name, features_only=True, device="meta").feature_info
        clip = f"{self.frames}, " if self.frames else ""
        maps = [f"[1, {channels}, {clip}H/{stride}, W/{stride}]" for channels, stride in zip(
            info.channels(), info.reduction(), strict=True)]
        same = len(set(maps)) == 1
        shapes = f"{len(maps)} times {maps[0]}" if same and len(maps) > 1 else ", ".join(maps)
        return f"""{self.create("features_only=True")}
with torch.inference_mode():
    maps = model(x)
for y in maps:
    print(y.shape)      # {shapes}"""

    def embeddings(self) -> str:
        return f"""{self.create("num_classes=0")}
with torch.inference_mode():
    embedding = model(x)                                # [1, {self.model.head_hidden_size}]
    # the same in two steps, between which the map or the tokens are not pooled yet
    embedding = model.forward_head(model.forward_features(x), pre_logits=True)"""

    def accuracy(self) -> str:
        """The section on published results."""
        rows, remarks = [], []
        for note in self.cfg.notes or ():
            found = re.fullmatch(r"(.+) (top-1|F1) ([\d.]+ %) \(published(?: in arXiv:([\d.]+))?\)", note)
            if found:
                data, metric, value, paper = found.groups()
                source = f"[arXiv:{paper}](https://arxiv.org/abs/{paper})" if paper else (
                    f"[README of {self.origin.removeprefix('https://github.com/')}]({self.origin})")
                rows.append({"data set": data, "metric": metric, "value": value, "source": source})
            elif note != "weights not released":    # which the description says
                remarks.append(f"{note[0].upper()}{note[1:]}.")
        table = [_bench.markdown_table(list(rows[0]), rows)] if rows else []
        intro = "As the authors published it; nothing of it was measured here." if rows else "None."
        return "\n\n".join(["## Accuracy, published", intro, *table, *remarks])

    def speed(self) -> str:
        """The section on measured results."""
        rows = [speed_row(row) for file in BENCHMARKS for row in select(read_rows(file), model=self.architecture)]
        if not rows:
            return "## Speed, measured\n\nNot measured yet."
        return (f"## Speed, measured\n\nBy `tools/benchmark.py` of this package, random weights; the commands are in "
                f"`benchmarks/`.\n\n{_bench.markdown_table(list(rows[0]), rows)}")

    def citation(self) -> str:
        """The paper, its numbers linked."""
        return re.sub(r"arXiv:([\d.]+\d)", r"[arXiv:\1](https://arxiv.org/abs/\1)", self.paper) + "."


def stats(model: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """What "Model Details" say of size and work.

    Args:
        model: on the meta device.
        shape: [1, C, H, W] of an image, or [1, C, T, H, W] of a clip.
    """
    counted = count(model, *shape)
    return {"Params (M)": f"{counted.params / 1e6:.2f}", "GMACs": f"{counted.macs / 1e9:.2f}",
            "Activations (M)": f"{counted.activations / 1e6:.1f}", "Image size": f"{shape[-2]} x {shape[-1]}",
            **({"Frames": shape[2]} if len(shape) == 5 else {})}


def image_classification(create: str, classes: int, mode: str = "RGB") -> str:
    """Code that names the most probable classes of a photograph.

    Args:
        create: the line that builds the model.
        classes: of the model.
        mode: of the images, as Pillow calls it.
    """
    return f'''import timm
import torch
import vmamba  # registers the models
from PIL import Image

{create}
config = timm.data.resolve_model_data_config(model)     # size, crop, mean and standard deviation
transform = timm.data.create_transform(**config, is_training=False)

x = transform(Image.open("photo.jpg").convert("{mode}")).unsqueeze(0)
with torch.inference_mode():
    logits = model(x)                                   # [1, {classes}]
probabilities, classes = logits.softmax(dim=1).topk({min(5, classes)})'''


def speed_row(row: Row) -> dict[str, str]:
    """A line of the table of measured speed."""
    return {
        "step": STEPS[row["bench"]], "device": row["device"], "batch": row["batch_size"], "image": row["img_size"],
        "precision": row["amp_dtype"] or "float32", "mode": row["mode"], "images/s": f"{float(row['img_per_s']):,.1f}",
        "ms": f"{float(row['median_ms']):,.1f}", "PyTorch": row["torch"], "date": row["date"][:10]}
