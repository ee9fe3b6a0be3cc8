"""python -m flaxattn export: a network for other runtimes, or for JAX without this library."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from flaxattn.commands.arguments import SOURCE, add_model, model_of, network_of, refuse
from flaxattn.errors import InputError
from flaxattn.export import to_stablehlo
from flaxattn.weights.files import write_atomically


def add(commands: Any) -> None:
    exporting = commands.add_parser("export", help="a network as ONNX or StableHLO")
    exporting.add_argument("source", nargs="?", help=SOURCE)
    exporting.add_argument(
        "out", type=Path, help="a .onnx or .stablehlo file; with --article a directory"
    )
    add_model(exporting)
    exporting.add_argument(
        "--article", action="store_true", help="instead of SOURCE: the four modules of article 2"
    )
    exporting.add_argument(
        "--softmax", action="store_true", help="of --article: SK's softmax, which it leaves out"
    )
    exporting.add_argument(
        "--layout", choices=("NHWC", "NCHW"), help="of images and maps in ONNX (NHWC)"
    )
    exporting.add_argument("--batch", type=int, help="how many images at once (any number)")
    exporting.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of the images"
    )
    exporting.add_argument("--draw", action="store_true", help="print the graph of ONNX as text")
    exporting.set_defaults(run=run)


def run(given: argparse.Namespace) -> None:
    own = {"layout": given.layout, "batch": given.batch, "size": given.size}
    if given.article == (given.source is not None):
        raise InputError("export takes SOURCE OUT, or --article DIRECTORY.")
    if given.article:
        refuse({**own, "model": given.model}, "the article's modules have their own")
        _article(given)
        return
    refuse({"softmax": given.softmax or None}, "this is for --article alone")
    form = given.out.suffix
    if form not in (".onnx", ".stablehlo"):
        raise InputError(f"{given.out} ends in {form or 'nothing'}: use .onnx or .stablehlo.")
    checkpoint, name, model = model_of(given, given.source)
    network = network_of(given, checkpoint, name, model)
    (*usual, channels) = network.preprocessing.input_size
    shape = (given.batch, *(given.size or usual), channels)
    if form == ".stablehlo":
        refuse({"layout": given.layout, "draw": given.draw or None}, "this is for ONNX alone")
        exported = to_stablehlo(model, network.variables, shape)
        write_atomically(given.out, bytes(exported.serialize()))
        print(f"{given.out}: images {_sizes(shape)}, for {', '.join(exported.platforms)}")
        return
    from flaxattn.export.onnx import Layout, largest_difference, to_onnx

    layout: Layout = given.layout or "NHWC"
    graph = to_onnx(model, network.variables, shape, layout=layout)
    write_atomically(given.out, graph.SerializeToString())
    images = np.random.default_rng(0).normal(size=(given.batch or 2, *shape[1:]))
    difference = largest_difference(
        graph, model, network.variables, images.astype(np.float32), layout=layout
    )
    _report(given, given.out, graph, difference)


def _article(given: argparse.Namespace) -> None:
    from flaxattn.export.onnx.article import article_modules

    given.out.mkdir(parents=True, exist_ok=True)
    for file, graph, difference in article_modules(softmax=given.softmax):
        write_atomically(given.out / file, graph.SerializeToString())
        _report(given, given.out / file, graph, difference)


def _report(given: argparse.Namespace, path: Path, graph: Any, difference: float) -> None:
    from flaxattn.export.onnx import draw

    nodes = [node.op_type for node in graph.graph.node]
    print(
        f"{path}: opset {graph.opset_import[0].version}, {len(nodes)} operations, "
        f"{nodes.count('Transpose')} of them Transpose; ONNX Runtime differs from JAX by "
        f"{difference:.1e} of the largest value"
    )
    if given.draw:
        print(draw(graph))


def _sizes(shape: tuple[int | None, ...]) -> str:
    return " x ".join("any" if n is None else str(n) for n in shape)
