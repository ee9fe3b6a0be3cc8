"""What a complete run leaves for others: its network by one call, and its predictions."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import flaxattn
from flaxattn.__main__ import main
from flaxattn.data import eval_transform, open_source
from flaxattn.errors import InputError
from flaxattn.models.segmentation import create_segmenter
from flaxattn.train.checkpoint import load_variables
from flaxattn.train.experiment import make_experiment
from flaxattn.train.loop import run
from flaxattn.train.published import publish
from flaxattn.weights import fetch
from flaxattn.weights.architecture import stated_model

DIGITS = tuple("0123456789")


def test_a_run_is_a_checkpoint(config, capsys, tmp_path):
    config.epochs = 0.1
    config.optim.warmup_epochs = 0.0
    run(config, tmp_path / "run")
    model, variables, preprocessing = flaxattn.from_pretrained(tmp_path / "run")

    picture = tmp_path / "digit.png"
    picture.write_bytes(open_source(config.data, "test")[3]["image"])
    image = preprocessing(picture)[None]
    logits = make_experiment(config).model.apply(load_variables(tmp_path / "run"), image)
    np.testing.assert_array_equal(model.apply(variables, image), logits)

    given = ["predict", str(picture), "--weights", str(tmp_path / "run"), "--top", "1"]
    assert main(given) == 0
    probability, name = capsys.readouterr().out.splitlines()[1].split()
    assert name == DIGITS[int(jnp.argmax(logits))]
    assert float(probability) == pytest.approx(float(jax.nn.softmax(logits).max()), abs=1e-4)


def test_a_graft_and_several_labels_are_stated(groups_config, capsys, tmp_path):
    placement = groups_config.model.attention.to_dict()
    del groups_config.model.attention
    groups_config.init.weights, groups_config.init.graft.attention = "not read here", placement
    model = make_experiment(groups_config, devices=jax.devices()[:1]).model
    variables = flaxattn.initialise(model, jax.random.key(0), (1, 24, 24, 1))
    publish(tmp_path, groups_config, variables, DIGITS)
    assert stated_model(fetch(tmp_path), num_classes=10).attention.graft

    picture = tmp_path / "digits.png"
    picture.write_bytes(open_source(groups_config.data, "test", annotation="classes")[0]["image"])
    assert main(["predict", str(picture), "--weights", str(tmp_path), "--top", "10"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert sum(float(line.split()[0]) for line in lines) > 2  # each class by itself


def test_a_segmenter_is_stated(segment_config, capsys, tmp_path):
    """By docs/segmentation.md's lines it is there again; a classifier's door says so."""
    experiment = make_experiment(segment_config, devices=jax.devices()[:1])
    variables = experiment.start()
    publish(tmp_path, segment_config, variables, experiment.train_source.class_names)
    checkpoint = fetch(tmp_path)
    model = create_segmenter(
        checkpoint.architecture, checkpoint.num_classes, **checkpoint.model_fields
    )
    loaded = flaxattn.weights.load(model, checkpoint, (1, 32, 32, 3))
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert checkpoint.config["label_names"] == ["background", *DIGITS]
    assert checkpoint.config["eval_resize"] == 0
    assert checkpoint.config["std"] == [0.2] * 3

    with pytest.raises(InputError, match="network for segmentation: make it with create_segm"):
        flaxattn.from_pretrained(tmp_path)
    assert main(["predict", "picture.png", "--weights", str(tmp_path)]) == 2
    assert "make it with create_segmenter" in capsys.readouterr().err


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize(("size", "resized"), [(224, 256), (7, 9), (49, 50), (8, 8)])
def test_images_are_prepared_as_in_the_run(config, tmp_path, size, resized, crop_mode):
    config.data.image_size, config.data.eval_resize = size, resized
    config.data.crop_mode = crop_mode
    publish(tmp_path, config, {"params": {}}, DIGITS)
    preprocessing = flaxattn.weights.Preprocessing.of(fetch(tmp_path).config)
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "png")
    record = {"image": file.getvalue(), "label": 0, "name": "picture"}
    expected = eval_transform(config.data)(record)["image"]
    # The two divide by 255 and by the deviation in another order.
    np.testing.assert_allclose(preprocessing(file.getvalue()), expected, atol=1e-6)
