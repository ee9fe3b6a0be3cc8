import itertools
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import digits, imagenet_resnet50
from flaxattn.errors import InputError
from flaxattn.train import experiment, loop, phases
from tests.train.conftest import small
from tests.train.runs import history, losses, newest_state, newest_step

# Eight devices, the default, compile and run a third longer on two cores.
ONE = jax.devices()[:1]


def assert_bit_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


# Of two slots; that every one fits its data is the next test, and that it trains test-all.
FEW = ("se", "sk")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in FEW else [pytest.mark.slow]) for n in digits.SLOTS],
)
def test_every_digits_experiment_trains(data_dir, tmp_path, name):
    config = digits.get_config(f"{name},debug")
    config.data.data_dir = data_dir
    config.epochs = 0.25
    result = loop.run(config, tmp_path, devices=ONE)
    assert result["count"] == 359
    assert np.isfinite(losses(tmp_path)).all()


def test_a_run_leaves_all_that_people_ask_for(config, tmp_path):
    result = loop.run(config, tmp_path)
    assert result["count"] == 359
    assert 0 < result["accuracy"] < 1
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert (tmp_path / "checkpoints" / "11").is_dir()
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    with Image.open(tmp_path / "curves.png") as curves:
        assert curves.format == "PNG"
    with Image.open(tmp_path / "pictures" / "step_11.png") as pictures:
        assert pictures.width > 8 * 256
        assert pictures.height > 2 * 256
    assert losses(tmp_path, "test") == [result["loss"]]
    assert [step for step, _ in history(tmp_path)] == [4, 8, 11, 11]


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    """The work directory of a run of `config` on one device, from its start to its end."""
    workdir = tmp_path_factory.mktemp("whole")
    loop.run(small(digits.get_config("se,debug"), data_dir), workdir, devices=ONE)
    return workdir


@pytest.fixture
def complete(whole, tmp_path):
    """Such a directory that a test may write to."""
    return shutil.copytree(whole, tmp_path / "complete")


def result_of(workdir):
    return json.loads((workdir / "result.json").read_text())


def test_a_complete_run_is_not_trained_again(config, complete, monkeypatch):
    monkeypatch.setattr(loop, "make_experiment", None)
    assert loop.run(config, complete, devices=ONE) == result_of(complete)


def test_a_run_killed_before_its_result_only_evaluates(config, complete, monkeypatch):
    first = result_of(complete)
    (complete / "result.json").unlink()
    monkeypatch.setattr(experiment, "train_batches", lambda *_, **__: iter_with_close())
    assert loop.run(config, complete, devices=ONE) == first


def iter_with_close():
    yield from ()


@pytest.mark.parametrize(
    ("dtype", "peak_rate", "tolerance"),
    [
        pytest.param("float32", 0.02, 1e-5, marks=pytest.mark.slow),
        ("float64", 0.1, 1e-13),
    ],
)
def test_devices_do_not_change_the_losses(config, tmp_path, dtype, peak_rate, tolerance):
    """At the config's learning rate in float64, to the last digits: it is the same function.

    In float32 a rounding error may put one hidden unit on the other side of its ReLU, and at a rate
    of 0.1 that shows: 1.6e-5 was measured at step 11.
    """
    config.log_every = 1
    config.dtype = dtype
    config.optim.learning_rate = peak_rate
    with jax.enable_x64(dtype == "float64"):
        for devices in (1, 8):
            loop.run(config, tmp_path / str(devices), devices=jax.devices()[:devices])
    one, eight = losses(tmp_path / "1"), losses(tmp_path / "8")
    np.testing.assert_allclose(eight, one, rtol=tolerance)


@pytest.mark.parametrize(
    "eval_batch_size",
    [120, *[pytest.param(size, marks=pytest.mark.slow) for size in (8, 64, 368)]],
)
def test_each_example_counts_once(config, tmp_path, eval_batch_size):
    """Whatever the batch size; 359 is a prime number."""
    config.epochs = 0.2
    config.eval_batch_size = 359
    whole = loop.run(config, tmp_path / "whole", devices=ONE)
    config.eval_batch_size = eval_batch_size
    found = loop.run(config, tmp_path / "parts")
    assert found["count"] == 359
    assert found["accuracy"] == whole["accuracy"]
    assert found["loss"] == pytest.approx(whole["loss"], rel=1e-5)


@pytest.mark.parametrize("name", ["config", pytest.param("groups_config", marks=pytest.mark.slow)])
def test_told_to_stop_it_saves_and_goes_on_bit_equal(name, request, tmp_path, monkeypatch):
    config = request.getfixturevalue(name)
    if name == "config":
        whole = request.getfixturevalue("whole")
    else:
        whole = tmp_path / "whole"
        loop.run(config, whole, devices=ONE)

    def interrupted(*args, start_step, **kwargs):
        batches = train_batches(*args, start_step=start_step, **kwargs)
        for step, batch in enumerate(batches, start_step + 1):
            if step == 5:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    train_batches = experiment.train_batches
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "train_batches", interrupted)
        with pytest.raises(loop.Preempted, match=r"after step 5 of \d+: all is saved in .*parts"):
            loop.run(config, tmp_path / "parts", devices=ONE)
    assert signal.getsignal(signal.SIGTERM) is handler
    loop.run(config, tmp_path / "parts", devices=ONE)
    assert_bit_equal(newest_state(tmp_path / "parts"), newest_state(whole))
    assert result_of(tmp_path / "parts") == result_of(whole)


def test_a_run_goes_on_with_another_number_of_devices(config, tmp_path, monkeypatch):
    """Saved on eight devices, resumed on two: the losses of one that never stopped."""
    config.log_every = 1
    loop.run(config, tmp_path / "whole")
    train_batches = experiment.train_batches
    with monkeypatch.context() as patch:
        patch.setattr(
            experiment, "train_batches", lambda *a, **k: first_batches(train_batches(*a, **k), 9)
        )
        with pytest.raises(StopIteration):
            loop.run(config, tmp_path / "parts")
    loop.run(config, tmp_path / "parts", devices=jax.devices()[:2])
    np.testing.assert_allclose(losses(tmp_path / "parts"), losses(tmp_path / "whole"), rtol=1e-5)


def first_batches(batches, count):
    yield from itertools.islice(batches, count)
    batches.close()


def test_what_is_not_finite_names_its_step(config, tmp_path, monkeypatch):
    """The rate rises from 0 to 1e30 at step 3, whose update is no longer saved."""
    config.optim.learning_rate = 1e30
    config.optim.warmup_epochs = 1e-9
    config.checkpoint_every = 1
    schedule = phases.learning_rate
    with pytest.raises(loop.Diverged, match=r"not finite numbers at step 1; .*none was saved yet"):
        loop.run(config, tmp_path / "at once", devices=ONE)
    monkeypatch.setattr(
        phases,
        "learning_rate",
        lambda *a, **k: lambda t: jnp.where(t < 2, 0.1, schedule(*a, **k)(t)),
    )
    with pytest.raises(loop.Diverged, match=r"at step 3; .*step 2 in .*in another --workdir, try"):
        loop.run(config, tmp_path / "later", devices=ONE)
    assert newest_step(tmp_path / "later") == 2
    assert not (tmp_path / "later" / "result.json").exists()


def test_no_implicit_transfer_passes_in_the_loop(config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "to_devices", lambda _, batch: batch)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        loop.run(config, tmp_path)


def test_the_step_is_traced_once(config, tmp_path, monkeypatch):
    steps = []

    def kept(*args):
        steps.append(make_train_step(*args))
        return steps[-1]

    make_train_step = experiment.make_train_step
    monkeypatch.setattr(experiment, "make_train_step", kept)
    config.eval_every = 0.2
    loop.run(config, tmp_path, devices=ONE)
    assert [step._cache_size() for step in steps] == [1]


@pytest.mark.parametrize("window", [(2, 1), (3, 100)])
def test_profiler_window(config, tmp_path, window):
    """A window that reaches past the end is cut off there."""
    config.epochs = 0.2
    config.profile.start, config.profile.steps = window
    loop.run(config, tmp_path, devices=ONE)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": "bfloat16", "mixup_alpha": 0.2, "cutmix_alpha": 1.0},
        {"optim.accumulation": 4, "optim.clip_norm": 1.0, "optim.name": "adamw"},
        pytest.param(
            {"data.workers": 1, "ema_decay": 0.0, "optim.name": "lamb"}, marks=pytest.mark.slow
        ),
        {"data.augment.randaugment_ops": 2, "data.augment.erasing": 0.5},
    ],
    ids=str,
)
def test_every_option_trains(config, tmp_path, fields):
    config.update_from_flattened_dict(fields)
    config.batch_size = 64
    result = loop.run(config, tmp_path, devices=ONE)
    assert np.isfinite(losses(tmp_path)).all()
    assert result["count"] == 359
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(newest_state(tmp_path)["params"])}
    assert dtypes == {np.dtype("float32")}, "under bfloat16 too"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 60}, "batch_size=60 is not divisible by the 8 devices"),
        ({"eval_batch_size": 3}, "eval_batch_size=3 is not divisible by the 8 devices"),
        ({"batch_size": 1440}, "batch_size=1440 is more than the 1438 training examples"),
        ({"task": "classificaton"}, "unknown task 'classificaton': did you mean classification"),
        ({"task": "multilabel"}, "choose a set for multi-label classification"),
        ({"dtype": "float61"}, "unknown dtype 'float61': did you mean"),
        ({"dtype": "float64"}, "needs 64-bit JAX: set JAX_ENABLE_X64=1"),
        ({"log_every": 0}, "log_every=0: use 1 or more"),
        ({"batch_size": 0}, "batch_size=0: use 1 or more"),
        ({"optim.accumulation": 0}, "optim.accumulation=0: use 1 or more"),
        ({"seed": -1}, "seed=-1: use 0 or more"),
        ({"epochs": 0.0}, "epochs=0.0: use a number above 0"),
        ({"ema_decay": 1.0}, "ema_decay=1.0: use a number from 0 to below 1"),
        ({"mixup_alpha": -1.0}, "mixup_alpha=-1.0: use 0 or more"),
        ({"data.augment.crop": "paddd"}, "did you mean padded"),
        ({"model.name": "resnet11"}, "unknown model 'resnet11': did you mean resnet1"),
        ({"model.attention.name": "sse"}, "unknown .*'sse': did you mean se"),
        ({"model.attention.name": "psa"}, "psa"),
        ({"model.attention.reduction": 64}, "reduction=64 leaves no channel of 16"),
        ({"optim.name": "sdg"}, "unknown optimizer 'sdg': did you mean sgd"),
        ({"data.name": "imagenet2012"}, "not prepared"),
        ({"data.eval_split": "tset"}, "tset"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_is_one_sentence_and_claims_nothing(config, tmp_path, fields, message):
    config = ConfigDict(config.to_dict())
    config.update_from_flattened_dict(fields)
    with pytest.raises(InputError, match=message):
        loop.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_even_kernel(config, tmp_path):
    config.model.attention = ConfigDict({"name": "eca", "kernel_size": 4})
    with pytest.raises(InputError, match=r"kernel_size=4 .* use an odd one, such as 3 or 5"):
        loop.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_experiments_directory(config, complete):
    config.seed = 1
    with pytest.raises(InputError, match="holds another experiment, which differs in seed: 0 the"):
        loop.run(config, complete, devices=ONE)


@pytest.fixture
def folder(tmp_path):
    """24 images in two classes: train/ and val/ of JPEG and PNG in several sizes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for label, name in enumerate(("dark", "light")):
            directory = tmp_path / "images" / split / name
            directory.mkdir(parents=True)
            for index in range(count):
                size = (40 + 3 * index, 50 - index, 3)
                pixels = rng.integers(128 * label, 128 * label + 128, size, dtype=np.uint8)
                suffix = ("jpg", "png")[index % 2]
                Image.fromarray(pixels).save(directory / f"{index}.{suffix}")
    return tmp_path / "images"


@pytest.fixture
def imagenet_config(folder):
    config = imagenet_resnet50.get_config("se,debug")
    config.data.update(source="folder", data_dir=str(folder), train_split="train", eval_split="val")
    return config


def test_the_imagenet_recipe_runs_on_a_folder(imagenet_config, tmp_path):
    result = loop.run(imagenet_config, tmp_path / "run", devices=ONE)
    assert result["count"] == 8
    assert len(losses(tmp_path / "run")) == 2


def test_a_broken_image_is_named_and_costs_no_step(imagenet_config, folder, tmp_path):
    imagenet_config.checkpoint_every = 100
    imagenet_config.epochs = 4.0
    whole = folder / "train" / "light" / "1.png"
    pixels = whole.read_bytes()
    whole.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"light/1\.png"):
        loop.run(imagenet_config, tmp_path / "run", devices=ONE)
    whole.write_bytes(pixels)
    loop.run(imagenet_config, tmp_path / "run", devices=ONE)
    loop.run(imagenet_config, tmp_path / "unbroken", devices=ONE)
    assert_bit_equal(newest_state(tmp_path / "run"), newest_state(tmp_path / "unbroken"))


def test_splits_with_other_classes_are_refused(imagenet_config, folder, tmp_path):
    (folder / "val" / "light").rename(folder / "val" / "bright")
    with pytest.raises(InputError, match="classes"):
        loop.run(imagenet_config, tmp_path / "run")
