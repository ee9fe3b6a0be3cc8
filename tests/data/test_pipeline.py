import collections
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flaxattn.data import eval_batches, eval_transform, open_source, train_batches, train_transform
from flaxattn.errors import InputError

ROOT = Path(__file__).parent.parent.parent


class Numbers:
    """A source whose n-th record is labelled n."""

    class_names = ("any",)
    num_classes = 1

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"image": b"", "label": index, "name": f"number {index}"}


def draw(record, rng):
    """The label, and numbers that only equal generators give twice."""
    return {"image": rng.random((2, 2, 1), np.float32), "label": np.int32(record["label"])}


def blank(record, *_):
    return {"image": np.ones((2, 2, 1), np.float32), "label": np.int32(record["label"])}


def take(batches, count):
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def joined(batches):
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


# Training


def test_shapes_and_dtypes():
    (batch,) = take(train_batches(Numbers(10), draw, batch_size=6, seed=0, process_count=2), 1)
    assert set(batch) == {"image", "label"}
    assert batch["image"].shape == (3, 2, 2, 1)
    assert batch["image"].dtype == np.float32
    assert batch["label"].shape == (3,)
    assert batch["label"].dtype == np.int32


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_processes_together_get_the_batches_of_one(process_count):
    options = {"batch_size": 8, "seed": 3}
    whole = take(train_batches(Numbers(29), draw, **options), 12)
    local = [
        take(
            train_batches(
                Numbers(29), draw, **options, process_index=index, process_count=process_count
            ),
            12,
        )
        for index in range(process_count)
    ]
    for step in range(12):
        same(joined([batches[step] for batches in local]), whole[step])


@settings(max_examples=15, deadline=None)
@given(start=st.integers(0, 40), count=st.integers(1, 50), processes=st.sampled_from([1, 2, 4]))
def test_a_run_continues_exactly_from_any_step(start, count, processes):
    options = {"batch_size": 4, "seed": 1, "process_index": processes - 1}
    options["process_count"] = processes
    whole = take(train_batches(Numbers(count), draw, **options), start + 3)
    resumed = take(train_batches(Numbers(count), draw, **options, start_step=start), 3)
    same(resumed, whole[start:])


def test_a_batch_of_one():
    batches = take(train_batches(Numbers(5), blank, batch_size=1, seed=0), 5)
    assert sorted(int(batch["label"][0]) for batch in batches) == list(range(5))


def test_a_run_may_start_far_along():
    far = 10**9
    (batch,) = take(train_batches(Numbers(7), draw, batch_size=4, seed=0, start_step=far), 1)
    assert batch["label"].shape == (4,)


def test_every_epoch_has_each_record_once_in_an_order_of_its_own():
    batches = take(train_batches(Numbers(30), blank, batch_size=12, seed=0), 15)
    labels = np.concatenate([batch["label"] for batch in batches])
    epochs = labels.reshape(6, 30)
    for epoch in epochs:
        assert sorted(epoch) == list(range(30))
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_a_record_is_augmented_anew_in_every_epoch():
    batches = take(train_batches(Numbers(5), draw, batch_size=5, seed=0), 20)
    drawn = joined(batches)["image"].reshape(100, -1)
    assert len(np.unique(drawn, axis=0)) == 100


def test_equal_seeds_give_equal_batches_and_other_seeds_others():
    first, again, other = (
        joined(take(train_batches(Numbers(40), draw, batch_size=40, seed=seed), 2))
        for seed in (0, 0, 1)
    )
    same(first, again)
    assert (first["label"] != other["label"]).any()
    assert (first["image"] != other["image"]).any()


def test_neighbouring_seeds_do_not_share_epochs():
    orders = collections.Counter()
    for seed in range(4):
        batches = take(train_batches(Numbers(20), blank, batch_size=20, seed=seed), 4)
        orders.update(tuple(batch["label"].tolist()) for batch in batches)
    assert max(orders.values()) == 1


def test_a_set_smaller_than_a_batch_is_repeated():
    (batch,) = take(train_batches(Numbers(3), blank, batch_size=9, seed=0), 1)
    assert np.bincount(batch["label"]).tolist() == [3, 3, 3]


def test_the_digits_stream_does_not_change_between_versions(config):
    """A saved run continues on the same data after an upgrade of Grain, NumPy or this library."""
    source = open_source(config, "train")
    transform = train_transform(config)
    (batch,) = take(train_batches(source, transform, batch_size=16, seed=0, start_step=200), 1)
    assert batch["image"].shape == (16, 8, 8, 1)
    assert batch["label"].tolist() == [7, 3, 5, 1, 0, 1, 2, 3, 0, 3, 9, 5, 4, 1, 0, 1]
    sums = batch["image"].sum(axis=(1, 2, 3))[:4]
    np.testing.assert_allclose(sums, [-13.46, -13.28, -6.74, -0.81], atol=0.006)


# Evaluation


@pytest.mark.parametrize("process_count", [1, 2, 4])
@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (8, 8), (1, 8), (9, 8), (23, 4)])
def test_each_record_counts_once_over_all_processes(count, batch_size, process_count):
    local = [
        list(
            eval_batches(
                Numbers(count),
                blank,
                batch_size=batch_size,
                process_index=index,
                process_count=process_count,
            )
        )
        for index in range(process_count)
    ]
    steps = -(-count // batch_size)
    assert [len(batches) for batches in local] == [steps] * process_count
    for batch in itertools.chain(*local):
        assert batch["mask"].dtype == np.float32
        assert batch["mask"].shape == batch["label"].shape == (batch_size // process_count,)
    whole = joined([joined(parts) for parts in zip(*local, strict=True)])
    np.testing.assert_array_equal(whole["label"][:count], np.arange(count))
    np.testing.assert_array_equal(whole["mask"], np.arange(steps * batch_size) < count)


def test_all_digits_are_evaluated(config):
    source = open_source(config, "test")
    batches = joined(list(eval_batches(source, eval_transform(config), batch_size=64)))
    assert batches["mask"].sum() == 359
    assert batches["image"].shape == (384, 8, 8, 1)
    labels = [source[i]["label"] for i in range(359)]
    np.testing.assert_array_equal(batches["label"][:359], labels)


# Errors


def both(**options):
    """Starting either kind of batches with these options."""
    train = {"batch_size": 4, "seed": 0} | options
    evaluation = {"batch_size": 4} | options
    return [
        lambda: train_batches(Numbers(4), draw, **train),
        lambda: eval_batches(Numbers(4), blank, **evaluation),
    ]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 10, "process_count": 4}, "10 cannot be shared evenly by 4 .* such as 12"),
        ({"batch_size": 0}, "global batch of 0 .* such as 1"),
        ({"process_index": 2, "process_count": 2}, "process_index=2 is not one of process_count=2"),
        ({"process_index": -1}, "process_index=-1 is not one of"),
        ({"workers": -1}, "workers=-1 is below 0"),
    ],
)
def test_numbers_out_of_range_are_a_sentence_at_once(options, sentence):
    for start in both(**options):
        with pytest.raises(InputError, match=sentence):
            start()


@pytest.mark.parametrize("options", [{"seed": -1}, {"seed": 0, "start_step": -1}])
def test_negative_seeds_and_steps_are_a_sentence(options):
    with pytest.raises(InputError, match="must not be negative"):
        train_batches(Numbers(4), draw, batch_size=4, **options)


def broken_folder(root):
    """One class of 5 images, the third of which is none."""
    (root / "train/cat").mkdir(parents=True)
    for number in range(5):
        Image.new("L", (8, 8)).save(root / f"train/cat/{number}.png")
    (root / "train/cat/2.png").write_bytes(b"broken")
    return f"{root}/train/cat/2.png"


def starts(source, config, workers):
    options = {"batch_size": 5, "workers": workers}
    return {
        "training": lambda: train_batches(source, train_transform(config), seed=0, **options),
        "evaluation": lambda: eval_batches(source, eval_transform(config), **options),
    }


@pytest.mark.parametrize(("kind", "workers"), [("training", 0), ("evaluation", 0), ("training", 1)])
def test_a_broken_image_is_named_in_the_main_process(tmp_path, config, kind, workers):
    name = broken_folder(tmp_path)
    source = open_source(config | {"source": "folder", "data_dir": str(tmp_path)}, "train")
    batches = starts(source, config, workers)[kind]()
    with pytest.raises(InputError, match=f"^{name} cannot be read as an image") as error:
        next(batches)
    # Removing it would change the order of a run that goes on.
    assert "put a complete image in its place" in str(error.value)
    assert "remove" not in str(error.value)


def test_a_file_that_goes_during_the_run_is_named(tmp_path, config):
    name = broken_folder(tmp_path)
    source = open_source(config | {"source": "folder", "data_dir": str(tmp_path)}, "train")
    Path(name).unlink()
    with pytest.raises(InputError, match=f"^{name} cannot be read \\(No such file"):
        next(starts(source, config, 0)["training"]())


# Worker processes


def test_there_are_no_more_workers_than_processors(config, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    source, transform = open_source(config, "train[:20]"), train_transform(config)
    expected = take(train_batches(source, transform, batch_size=4, seed=0), 1)
    batches = train_batches(source, transform, batch_size=4, seed=0, workers=3)
    first = next(batches)
    assert len(multiprocessing.active_children()) == 1
    same([first], expected)
    batches.close()
    assert not multiprocessing.active_children()


WORKERS = """
import concurrent.futures, gc, itertools, json, sys
import jax, numpy as np
from flaxattn.data import *

def numbers(batches, count=None):
    taken = [jax.tree.map(np.ndarray.tolist, batch) for batch in itertools.islice(batches, count)]
    if count:
        batches.close()
    return taken

def main(config):
    train, test = open_source(config, "train"), open_source(config, "test")
    def training(workers):
        options = dict(batch_size=16, seed=5, start_step=87, workers=workers)
        return train_batches(train, train_transform(config), **options)
    def evaluation(workers):
        transform = eval_transform(config)
        return eval_batches(test, transform, batch_size=64, workers=workers)

    global left_open, held
    left_open, finished, closed = training(1), evaluation(1), training(2)
    with concurrent.futures.ThreadPoolExecutor() as pool:  # processes take long to start
        held, first, on_device = pool.map(next, (left_open, finished, closed))
    on_device = jax.tree.map(jax.device_put, on_device)
    expected = numbers(training(0), 9)
    answers = {"training": numbers(closed, 8) == expected[1:]}
    answers["memory"] = jax.tree.map(np.ndarray.tolist, jax.device_get(on_device)) == expected[0]
    answers["tensorflow"] = "tensorflow" in sys.modules
    gc.disable()  # so that nobody else cleans up
    answers["evaluation"] = numbers(itertools.chain([first], finished)) == numbers(evaluation(0))
    print(json.dumps(answers))

if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
"""


def test_worker_processes_give_the_same_batches(config, tmp_path):
    """In a script of its own, as a user starts it.

    The batches lie in memory shared with the workers and must outlive the NumPy arrays when a
    device array was made from them; TensorFlow must not come along. Nothing is left of that memory
    after a finished pass, after closing early, and when the program ends in the midst.
    """
    config["augment"] |= {"randaugment_ops": 2, "erasing": 0.5}
    script = tmp_path / "script.py"
    script.write_text(WORKERS)
    done = subprocess.run(
        # Made an error, the warning of what is leaked would be swallowed.
        [sys.executable, "-Werror", "-Wdefault:resource_tracker", script, json.dumps(config)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    answers = json.loads(done.stdout)
    assert answers == {"training": True, "evaluation": True, "memory": True, "tensorflow": False}
