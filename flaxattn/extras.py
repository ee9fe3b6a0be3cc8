"""What comes with an extra, and the sentence for those who lack it."""

from importlib.util import find_spec

from flaxattn.errors import InputError

# Those of pyproject.toml that the library imports, by the names of their modules.
EXTRAS = {
    "train": (
        *("absl", "array_record", "chex", "grain", "matplotlib", "ml_collections", "optax"),
        *("orbax", "PIL", "sklearn", "tensorboardX", "tensorflow_datasets", "tqdm"),
    ),
    "coco": ("pycocotools",),
    "export": ("jax2onnx", "onnx", "onnx_ir", "onnxruntime", "onnxscript"),
    "hub": ("huggingface_hub", "matplotlib", "PIL", "safetensors"),
}


def require_extra(extra: str, *modules: str, doing: str) -> None:
    """InputError unless `modules` of an extra, by default all of them, are installed."""
    for module in modules or EXTRAS[extra]:
        if find_spec(module) is None:
            raise InputError(f'{doing} needs {module}: pip install "flaxattn[{extra}]".')
