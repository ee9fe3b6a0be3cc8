"""Article 3's networks: their published counts, the module's, and how the table is asked for."""

import pytest

from flaxattn.__main__ import main
from flaxattn.inspect import article
from flaxattn.inspect.cost import cost
from flaxattn.models import create_model

PARAMETERS = {
    "VGG16": 138_357_544,
    "VGG16+SCA": 138_357_544 + 66_625,
    "ResNet50": 25_557_032,
    "ResNet50+SCA": 25_557_032 + 1_052_929,
    "Faster R-CNN, ResNet50": 41_396_536,
    "Faster R-CNN, ResNet50+SCA": 41_396_536 + 1_052_929,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_ones_and_the_modules(name):
    (row,) = [row for row in article.ROWS if row.name == name]
    assert cost(row.make(), (1, 64, 64, 3)).parameters == PARAMETERS[name]


def test_the_table_with_times(capsys, monkeypatch):
    vgg, *_ = article.ROWS
    small = vgg._replace(size=(32, 32))
    monkeypatch.setattr(article, "ROWS", (small,))
    assert main(["describe", "--article"]) == 0
    shown = capsys.readouterr().out.splitlines()[1].split()
    assert shown == ["VGG16", "32x32", "138.36", "M", "0.44", "G", "138", "M,", "15.5", "G"]
    monkeypatch.setattr(article, "milliseconds", lambda *given: f"{given[-1]} times")
    assert main(["describe", "--article", "--repeats", "3"]) == 0
    assert "3 times" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "a name, or --article"),
        (["se", "--article"], "a name, or --article"),
        (["--article", "--size", "7"], "--size 7: the article's networks have their own"),
        (["se", "--repeats", "3"], "--repeats 3: only --article is timed"),
    ],
)
def test_a_name_or_the_article(arguments, sentence, capsys):
    assert main(["describe", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_times_are_measured():
    model = create_model("resnet10", stage_sizes=(1,), width=8, stem="small", num_classes=3)
    shown = article.milliseconds(model, (1, 8, 8, 3), 3)
    assert " to " in shown
