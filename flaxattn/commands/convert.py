"""python -m flaxattn convert: weights from PyTorch and back."""

import argparse
from pathlib import Path
from typing import Any

from flaxattn.commands.arguments import SOURCE, add_model, model_of
from flaxattn.errors import InputError
from flaxattn.weights import load_pretrained, to_torch, write
from flaxattn.weights.kinds import is_coco_v1, preprocessing_of
from flaxattn.weights.naming import FLAX, OWN, tables


def add(commands: Any) -> None:
    converting = commands.add_parser("convert", help="weights of PyTorch to Flax's, and back")
    converting.add_argument("source", help=SOURCE)
    converting.add_argument(
        "out", type=Path, help="a .safetensors or .npz file; with --to torch .pth too"
    )
    add_model(converting)
    converting.add_argument("--naming", help="of SOURCE, if torch's, such as timm (default: found)")
    converting.add_argument("--to", choices=("flax", "torch"), default="flax")
    converting.add_argument(
        "--to-naming", help="of OUT with --to torch (default: SOURCE's if torch's, else timm's)"
    )
    converting.add_argument("--entry", help="which state dict of a torch file that has several")
    converting.add_argument("--force", action="store_true", help="overwrite OUT")
    converting.set_defaults(run=run)


def run(given: argparse.Namespace) -> None:
    if given.to_naming is not None and given.to != "torch":
        raise InputError(f"--to-naming {given.to_naming} names torch's tensors: add --to torch.")
    checkpoint, name, model = model_of(given, given.source)
    if is_coco_v1(name, checkpoint.path):
        raise InputError(
            f"{checkpoint.path} wants an epsilon of 0 in its norms, which {given.out} could not "
            f"say: use the file itself."
        )
    loaded = load_pretrained(
        model,
        checkpoint,
        (1, *preprocessing_of(checkpoint, name).input_size),
        naming=given.naming,
        entry=given.entry,
        other_architecture=given.other_architecture,
    )
    if given.naming is not None and loaded.naming == FLAX:
        raise InputError(
            f"--naming {given.naming} names torch's tensors, but {checkpoint.path} has Flax's: "
            f"leave it out, or name those of {given.out} with --to torch --to-naming."
        )
    made, written = loaded.variables, FLAX
    if given.to == "torch":
        written = given.to_naming or _usual_naming(model, loaded.naming)
        made = to_torch(loaded.variables, written, module=model)
    write(given.out, made, config=checkpoint.config, overwrite=given.force)
    print(f"{checkpoint.path} ({loaded.naming}) -> {given.out} ({written}), {_size(given.out)}")


def _usual_naming(model: Any, read: str) -> str:
    """The source's own naming; for Flax's arrays timm's or torchvision's if one has the model."""
    if read != FLAX:
        return read
    return next((name for name in ("timm", "torchvision") if name in tables(model)), OWN)


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 2**20:.1f} MiB"
