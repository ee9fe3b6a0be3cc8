"""The site of the documentation is built without a warning, and has every public name."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import flaxattn
from flaxattn import ATTENTION, inspect, models, weights
from flaxattn.attention.mechanism import layer_of
from flaxattn.models import detection, segmentation

ROOT = Path(__file__).parent.parent
# Those of their own pages.
ELSEWHERE = {"flaxattn.weights", "flaxattn.inspect.attention_maps"}


@pytest.mark.slow
def test_the_site_has_every_public_name(tmp_path):
    pytest.importorskip("mkdocs", reason="make docs and make test-all install it")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    _, inventory = (tmp_path / "objects.inv").read_bytes().split(b"using zlib.\n")
    found = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    public = {
        f"{module.__name__}.{name}"
        for module in (flaxattn, models, detection, segmentation, weights, inspect)
        for name in module.__all__
    }
    layers = {layer_of(made) for made in ATTENTION.values()}
    public |= {f"{layer.__module__}.{layer.__name__}" for layer in layers}
    assert len(public) > 100
    assert public - found == ELSEWHERE & public
    attention = (tmp_path / "api" / "attention" / "index.html").read_text()
    assert 'href="../../mechanisms/"' in attention
    for shown in (
        "<code>reduction: int = 16</code>: C / h; h is rounded down.</li>",
        "<code>dtype</code>: of the gate's arithmetic",
        "<code>SqueezeExcite.article_s0()</code>: Article 0's SEAttention: no biases.</li>",
    ):
        assert shown in attention
