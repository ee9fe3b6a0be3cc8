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
from flaxattn.models.detection import postprocess
from flaxattn.train.checkpoint import load_variables
from flaxattn.train.experiment import make_experiment
from flaxattn.train.loop import run
from flaxattn.train.published import publish
from flaxattn.weights import class_names, fetch
from flaxattn.weights.kinds import stated_model

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


def written(config, folder):
    """What a run that ends at once would publish; the picture of a test record; and the rest."""
    experiment = make_experiment(config, devices=jax.devices()[:1])
    variables = experiment.start()
    publish(folder, config, variables, experiment.train_source.class_names)
    record = experiment.eval_source[1]
    picture = folder / "picture.jpg"
    picture.write_bytes(record["image"])
    return experiment, variables, picture, record


def test_a_segmenter_sees_what_it_sees_in_the_run(segment_config, tmp_path):
    experiment, variables, picture, record = written(segment_config, tmp_path)
    model, loaded, preprocessing = flaxattn.from_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    config = fetch(tmp_path).config
    assert config["label_names"] == ["background", *DIGITS]
    assert preprocessing.canvas == segment_config.data.canvas

    transform = eval_transform(segment_config.data, annotation="masks")
    image = transform(record)["image"]
    np.testing.assert_array_equal(preprocessing(picture).image, image)
    logits = jax.jit(experiment.model.apply)(variables, image[None])
    (classes,) = flaxattn.segment(model, loaded, picture, preprocessing=preprocessing)
    height, width = record["mask"].shape
    best = experiment.task.predict(logits)[0, :height, :width]
    np.testing.assert_array_equal(classes, best)


def test_a_detector_sees_what_it_sees_in_the_run(detect_config, tmp_path):
    experiment, variables, picture, record = written(detect_config, tmp_path)
    model, loaded, preprocessing = flaxattn.from_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    names = class_names(fetch(tmp_path).config)
    assert len(names) == model.num_classes - 1
    assert preprocessing.canvas == detect_config.data.canvas

    transform = eval_transform(detect_config.data, annotation="objects")
    example = transform(record)
    image, size, original_size = preprocessing(picture)
    np.testing.assert_array_equal(image, example["image"])
    outputs = jax.jit(experiment.model.apply)(variables, image[None], size[None])
    outputs = postprocess(experiment.task.predict(outputs), size[None], original_size[None])
    (found,) = flaxattn.detect(
        model, loaded, picture, preprocessing=preprocessing, classes=names, threshold=0
    )
    count = int(outputs.valid.sum())
    assert len(found) == count > 0
    assert [one.label for one in found] == outputs.labels[0, :count].tolist()
    assert found[0].name == names[found[0].label]
    np.testing.assert_allclose([one.score for one in found], outputs.scores[0, :count], rtol=1e-5)
    np.testing.assert_allclose([one.box for one in found], outputs.boxes[0, :count], atol=1e-3)


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
