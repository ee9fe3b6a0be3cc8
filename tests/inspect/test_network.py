import jax
import jax.numpy as jnp
import pytest

from flaxattn import create_model
from flaxattn.__main__ import main
from flaxattn.inspect.network import describe_network, placed
from flaxattn.layers.abstract_variables import abstract_variables

SHAPE = (1, 64, 64, 3)


def test_each_layer_with_its_map_and_cost():
    model = create_model("resnet10", attention={"name": "cbam", "stages": (3, 4), "graft": True})
    layers = placed(model, SHAPE)
    assert [layer.path for layer in layers] == ["layer3_0/se", "layer4_0/se"]
    assert [layer.input_shape for layer in layers] == [(1, 4, 4, 256), (1, 2, 2, 512)]
    assert {(layer.layer, layer.role) for layer in layers} == {("CBAM", "recalibrate")}
    assert layers[1].cost.parameters == 2 * 512 * 32 + 2 * 49
    assert layers[1].bytes == 2 * (2 * 2 * 512) * 4


def test_bfloat16_moves_half_the_bytes():
    model = create_model("resnet10", attention="se")
    bytes_of = [
        sum(layer.bytes for layer in placed(model.clone(dtype=dtype), SHAPE))
        for dtype in (jnp.float32, jnp.bfloat16)
    ]
    assert bytes_of[0] == 2 * bytes_of[1]


def test_a_shared_layers_parameters_count_once():
    model = create_model("resnet18", attention={"name": "se", "stages": 4, "share": True})
    first, second = placed(model, SHAPE)
    assert first.path == second.path == "layer4_se"
    assert first.cost.parameters > second.cost.parameters == 0


def test_layers_cost_what_they_cost_as_they_are_called():
    """Here a block computes the weights of its convolutions' experts once for all three."""
    model = create_model("efficientnet_cc_b0_4e")
    params = abstract_variables(model, SHAPE)["params"]
    layers = {layer.path: layer.cost for layer in placed(model, SHAPE)}
    assert (
        layers["blocks_4_0/conv_dw"].parameters == params["blocks_4_0"]["conv_dw"]["kernels"].size
    )
    whole = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(c.parameters for c in layers.values()) < whole


def test_a_network_without_any():
    text = describe_network("resnet10", create_model("resnet10"), SHAPE)
    assert text.startswith("resnet10 at 64x64: ")
    assert "attention has 0 (0.00%) of the parameters" in text


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["resnet10", "--attention", "se"], "layer1_0/se"),
        (["resnet10", "--context", "name=non_local,stages=3+4"], "layer4_0/context"),
        (["resnet10", "--conv", "name=sk,variant=timm"], "layer1_0/conv1"),
        (["vgg11", "--attention", "name=sca,after=conv5_2"], "se5_2"),
    ],
)
def test_from_the_command_line(arguments, shown, capsys):
    assert main(["describe", *arguments, "--size", "64"]) == 0
    assert f"\n{shown} " in capsys.readouterr().out


def test_a_wrong_placement_is_one_sentence(capsys):
    assert main(["describe", "resnet10", "--attention", "sk"]) == 2
    assert "sk replaces a convolution" in capsys.readouterr().err
