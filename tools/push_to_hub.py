#!/usr/bin/env python3
"""Share a classifier that tools/train.py made: as a folder for timm, or on the Hugging Face Hub, with a model card.

    python tools/push_to_hub.py runs/NAME/model_best.safetensors --license apache-2.0 --output exported/NAME
    python tools/push_to_hub.py runs/NAME/model_best.safetensors --license apache-2.0 --repo-id USER/NAME --private

After `import vmamba`, `timm.create_model("local-dir:exported/NAME", pretrained=True)` or
`timm.create_model("hf-hub:USER/NAME", pretrained=True)` gives the same model back: weights, arguments, preprocessing
and class names. The Hub is asked with the token that `hf auth login` left, or that HF_TOKEN holds; a README.md that a
repository has already is kept. The licence is yours to name; weights that were fine-tuned keep to that of the weights
they started from.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import timm
from _cards import Card, configurations, image_classification, stats
from huggingface_hub.errors import HTTPError

from vmamba._timm import generate_readme, save_for_hf
from vmamba.errors import UserError, tool
from vmamba.train.arguments import add_model_arguments
from vmamba.train.checkpoint import Description
from vmamba.train.model import load_classifier
from vmamba.train.run_directory import make_folder


def model_card(description: Description, license: str, source: str) -> dict[str, Any]:
    """The card of a trained classifier, as `timm.models.push_to_hf_hub` takes it.

    Args:
        description: what its checkpoint says.
        license: of the weights, an identifier of the Hub.
        source: where `timm.create_model` finds it, `hf-hub:USER/NAME` or `local-dir:FOLDER`.
    """
    model = timm.create_model(
        description.architecture, num_classes=description.num_classes, in_chans=description.in_chans,
        device="meta", **description.model_args)
    names = description.label_names
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    reached = ", ".join(f"{name} {value:.2f}" for name, value in description.metrics.items())
    code = image_classification(
        f'model = timm.create_model("{source}", pretrained=True).eval()', description.num_classes,
        "L" if description.in_chans == 1 else "RGB")
    if names:
        code += '\nprint([model.pretrained_cfg["label_names"][index] for index in classes[0]])'
    details: dict[str, Any] = {
        "Model Type": "Image classification / feature backbone",
        "Model Stats": stats(model, (1, *description.data_config["input_size"])),
        **({"Classes": f"{len(names)}: {shown}"} if names else {}),
        **({"Validation": f"{reached} after {description.epoch} epochs"} if reached else {})}
    ours = [name for name in configurations() if name.partition(".")[0] == description.architecture.partition(".")[0]]
    if ours:
        details["Papers"] = Card(ours[0]).papers()
    data = f"`{description.dataset}`" if description.dataset else "a folder of images"
    return {
        "tags": ["image-classification", "timm", "vmamba"], "license": license, "details": details,
        "description": f"`{description.architecture}` of the package `vmamba`, trained on {data} by its "
                       "`tools/train.py`.",
        "usage": f"\n```python\n{code}\n```\n\nWith `features_only=True` it gives feature maps, with `num_classes=0` "
                 "embeddings."}


def export(model: Any, description: Description, folder: Path, license: str) -> None:
    """Writes weights, configuration and card into a folder that timm's `local-dir:` reads.

    Raises:
        UserError: the folder exists, or cannot be written.
    """
    if folder.exists():
        raise UserError(f"{folder} exists: give another --output")
    make_folder(folder)
    save_for_hf(
        model, folder, model_config=model_config(description, license), data_config=description.data_config,
        safe_serialization=True)
    card = model_card(description, license, f"local-dir:{folder}")
    (folder / "README.md").write_text(generate_readme(card, folder.name), encoding="utf-8")
    print(f'{folder}: timm.create_model("local-dir:{folder}", pretrained=True)')


def push(model: Any, description: Description, repo_id: str, license: str, private: bool) -> None:
    """Uploads the same to the Hub.

    Raises:
        UserError: the Hub cannot be reached, or refuses.
    """
    try:
        timm.models.push_to_hf_hub(
            model, repo_id, private=private, model_config=model_config(description, license),
            model_card=model_card(description, license, f"hf-hub:{repo_id}"), data_config=description.data_config,
            safe_serialization=True)
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(f"cannot push to {repo_id}: {error}") from error
    print(f'{repo_id}: timm.create_model("hf-hub:{repo_id}", pretrained=True)')


def model_config(description: Description, license: str) -> dict[str, Any]:
    """What timm keeps of these weights, instead of what the architecture's configuration says of the published ones."""
    names = {"label_names": description.label_names} if description.label_names else {}
    return {**names, "pretrained_cfg": {"license": license, "origin_url": None, "notes": None}}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", metavar="FILE", help="weights of a run, such as runs/NAME/model_best.safetensors")
    add("--use-ema", action="store_true", help="use the averaged weights that belong to the checkpoint")
    add("--license", required=True, metavar="ID", help="licence of the weights by its name on the Hub, as apache-2.0")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--output", type=Path, metavar="DIR", help="a new folder, for timm's local-dir:")
    target.add_argument("--repo-id", metavar="USER/NAME", help="a repository on the Hub, made if it is not there")
    add("--private", action="store_true", help="make a new repository private")
    add_model_arguments(parser)
    return parser.parse_args(argv)


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    model, description = load_classifier(args)
    if args.output is not None:
        export(model, description, args.output, args.license)
    else:
        push(model, description, args.repo_id, args.license, args.private)
    return 0


if __name__ == "__main__":
    sys.exit(main())
