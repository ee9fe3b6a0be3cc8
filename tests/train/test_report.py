import io
import json
import logging
import sys

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from flaxattn.train.report import Report, draw_curves, read_history

METRICS = {"loss": 0.5, "accuracy": 0.9, "grad_norm": 1.0, "learning_rate": 0.1}


def started(workdir, start_step=0, headline="accuracy"):
    return Report(
        workdir,
        start_step=start_step,
        total_steps=20,
        steps_per_epoch=10,
        batch_size=64,
        headline=headline,
    )


@pytest.fixture
def report(tmp_path):
    return started(tmp_path)


def test_one_line_an_interval_with_speed_and_time_left(report, caplog):
    with caplog.at_level(logging.INFO, logger="flaxattn"):
        for step in range(1, 6):
            report.advance(step, np.zeros(()))
        report.train(5, METRICS)
        report.close()
    (line,) = caplog.messages
    assert line.startswith("step 5/20  epoch 0.50  loss 0.5  accuracy 0.9")
    assert "images/s" in line
    assert "ETA 0:00:0" in line


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_on_a_terminal_only(tmp_path, monkeypatch, terminal):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    report = started(tmp_path, start_step=5)
    for step in range(6, 21):
        report.advance(step, np.zeros(()))
    report.close()
    assert ("20/20" in stream.getvalue()) == terminal


def test_history_drops_what_a_stopped_run_had_not_saved(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "split": "train", **METRICS} for step in (4, 8, 12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 16, "spl')
    report = started(tmp_path, start_step=8)
    assert [row["step"] for row in read_history(path)] == [4, 8]
    report.evaluation(20, {"loss": 0.1, "accuracy": 1.0, "count": 10})
    report.evaluation(20, {"loss": 0.2, "accuracy": 1.0, "count": 10})
    report.close()
    assert read_history(path)[-1]["loss"] == 0.2
    assert len(read_history(path)) == 3


def test_events_and_curves_are_written(report, tmp_path):
    report.train(10, METRICS)
    sheet = np.zeros((20, 30, 3), np.uint8)
    report.evaluation(10, {"loss": 0.4, "accuracy": 0.8, "count": 7}, sheet)
    report.close()
    with Image.open(tmp_path / "pictures" / "step_10.png") as image:
        np.testing.assert_array_equal(image, sheet)
    (events,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    assert read_scalars(events) == {
        **{f"train/{name}": pytest.approx(value) for name, value in METRICS.items()},
        "test/loss": pytest.approx(0.4),
        "test/accuracy": pytest.approx(0.8),
        "test/count": pytest.approx(7),
        "test/pictures": 0,  # an image has no scalar
    }
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG"
        assert np.asarray(image.convert("L")).std() > 1


@pytest.mark.parametrize("splits", [("train",), ("train", "test")])
def test_curves_of_what_there_is(tmp_path, monkeypatch, splits):
    """Loss and the headline metric, which training need not have, nor evaluation yet."""
    rows = {"train": {"loss": 2.0}, "test": {"loss": 1.5, "mAP": 0.4}}
    figures = []
    make = matplotlib.figure.Figure
    monkeypatch.setattr(
        matplotlib.figure, "Figure", lambda **k: figures.append(make(**k)) or figures[-1]
    )
    history = [{"step": 1, "split": split, **rows[split]} for split in splits]
    draw_curves(history, tmp_path / "curves.png", headline="mAP")
    assert (tmp_path / "curves.png").stat().st_size > 0
    loss, headline = figures[0].axes
    assert headline.get_ylabel() == "mAP"
    assert [line.get_label() for line in loss.lines] == list(splits)
    drawn = [(line.get_label(), *line.get_ydata()) for line in headline.lines]
    assert drawn == [("test", 0.4)] * ("test" in splits)


def read_scalars(path):
    """The scalars of a TensorBoard file: records of length, checksum, event, checksum."""
    scalars = {}
    data = path.read_bytes()
    position = 0
    while position < len(data):
        length = int.from_bytes(data[position : position + 8], "little")
        event = Event.FromString(data[position + 12 : position + 12 + length])
        scalars |= {value.tag: value.simple_value for value in event.summary.value}
        position += 12 + length + 4
    return scalars
