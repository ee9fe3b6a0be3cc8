import jax
import jax.numpy as jnp
import pytest

from flaxattn.attention import ATTENTION, CBAM, DualAttention, SqueezeExcite, create_attention
from flaxattn.errors import InputError
from tests.attention import contract

REQUIRED = {"simplified_psa": {"features": 32}, "sk": {"features": 32}}


VARIANTS = [
    (name, variant)
    for name, create in ATTENTION.items()
    for variant in (None, *getattr(create, "variants", ()))
]


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_name_and_variant_keeps_the_contract(name, variant):
    layer = create_attention(name, variant=variant, **REQUIRED.get(name, {}))
    x = jax.random.normal(jax.random.key(0), (2, 4, 8, 32))
    variables = layer.init(jax.random.key(1), x)
    answer, gates = contract.sown(layer, variables, x)
    assert jnp.isfinite(answer).all()
    assert answer.dtype == x.dtype
    if getattr(layer, "output", "scaled") == "scaled":
        assert answer.shape == x.shape
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(gates)]
    assert paths
    assert all("attention" in path for path in paths)

    trained = layer.apply(
        variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(2)}
    )
    assert trained[0].shape == answer.shape

    narrow, gates = contract.sown(layer, variables, x.astype(jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16
    assert all(gate.dtype == jnp.float32 for gate in jax.tree.leaves(gates))
    assert layer.role in ("recalibrate", "context", "convolution", "head")


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("cbam", 3),
        ("channel", 2),
        ("eca", 1),
        ("sca", 2),
        ("sca_lite", 2),
        ("se", 2),
        ("sk", 2),
        ("spatial", 1),
    ],
)
def test_gates_multiply_in_full_float32_on_every_platform(name, layers):
    """By default an accelerator would multiply float32 in fewer bits."""
    layer = create_attention(name, **REQUIRED.get(name, {}))
    x = jnp.ones((2, 4, 8, 32))
    variables = layer.init(jax.random.key(0), x)
    text = jax.jit(layer.apply).lower(variables, x).as_text()
    assert text.count("precision_config = [#stablehlo<precision HIGHEST>") == layers


def test_fields_prevail_over_the_variant():
    assert create_attention("se", reduction=4) == SqueezeExcite(reduction=4)
    layer = create_attention("cbam", variant="article_s2", kernel_size=5)
    assert layer == CBAM(kernel_size=5, use_bias=True, spatial_bias=True)
    assert create_attention("sca_lite") == DualAttention.lite()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "cbma"}, r"unknown attention 'cbma': did you mean cbam"),
        ({"name": "squeeze"}, r"unknown attention 'squeeze': .* Known: cbam, .*spatial"),
        ({"name": "cbam", "variant": "offical"}, r"variant of cbam 'offical': .*mean official\?"),
        ({"name": "se", "reductoin": 4}, r"unknown field of se 'reductoin': .*mean reduction\?"),
        ({"name": "se", "gate": 4}, r"field of se 'gate': .* Known: bias_init, .*use_bias"),
        ({"name": "sca_lite", "variant": "lite"}, "sca_lite is a variant already"),
        ({"name": "simplified_psa"}, "simplified_psa needs its field features"),
    ],
)
def test_what_there_is_not(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        create_attention(**arguments)


def test_psa_is_ambiguous_and_only_what_exists_is_offered():
    with pytest.raises(InputError, match="three papers' layers") as error:
        create_attention("psa")
    papers, offered = str(error.value).split(": use ")
    for name in ("psanet", "pyramid_squeeze", "polarized"):
        assert name in papers
    names = [item.split(" (")[0] for item in offered.rstrip(".").split(" or ")]
    assert "simplified_psa" in names
    assert set(names) <= ATTENTION.keys()
