import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.attention import ATTENTION, CBAM, DualAttention, SqueezeExcite, create_attention
from flaxattn.errors import InputError
from flaxattn.layers.precision import at_least_float32
from tests.attention import contract
from tests.attention.examples import SOWN, fields

VARIANTS = [
    (name, variant)
    for name, create in ATTENTION.items()
    for variant in (None, *getattr(create, "variants", ()))
]


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_name_and_variant_keeps_the_contract(name, variant):
    """Shapes and dtypes, for which no number needs to be computed."""
    for dtype, param_dtype in (
        ("float32", "float32"),
        ("bfloat16", "float32"),
        ("float32", "bfloat16"),
        ("float64", "float32"),
    ):
        with jax.enable_x64(dtype == "float64"):
            check_contract(name, variant, jnp.dtype(dtype), jnp.dtype(param_dtype))


def check_contract(name, variant, dtype, param_dtype):
    layer = create_attention(
        name, variant=variant, **fields(name, variant), param_dtype=param_dtype
    )

    def run(key, x):
        variables = layer.init(key, x)
        sown = contract.sown(layer, variables, x)
        trained, moved = layer.apply(
            variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )
        return variables, *sown, trained, moved

    key = jax.eval_shape(lambda: jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, 4, 8, 32), dtype)
    variables, answer, gates, trained, moved = jax.eval_shape(run, key, x)
    assert all(leaf.dtype == param_dtype for leaf in jax.tree.leaves((variables, moved)))
    assert (trained.shape, trained.dtype) == (answer.shape, answer.dtype)
    assert answer.dtype == dtype
    if getattr(layer, "output", "scaled") == "scaled":
        # PSANet answers x and more channels beside it.
        assert answer.shape == x.shape or (layer.role == "head" and answer.shape[:3] == x.shape[:3])
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(gates)]
    assert paths
    assert all("attention" in path for path in paths)
    assert all(gate.dtype == at_least_float32(dtype) for gate in jax.tree.leaves(gates))
    assert layer.role in ("recalibrate", "context", "convolution", "head")


def sown_by(name, dtype):
    """A compiled function: what the layer sows for x + offset in `dtype`, leaf by leaf."""
    layer = create_attention(name, **fields(name))
    x = np.random.default_rng(0).normal(size=(2, 4, 8, 32)).astype(np.float32)

    @jax.jit
    def run(key, offset):
        given = (x + offset).astype(dtype)
        return jax.tree.leaves(contract.sown(layer, layer.init(key, given), given)[1])

    return lambda offset: run(jax.random.key(1), jnp.float32(offset))


def check_sums(name, leaves):
    """Where SOWN has axes, those of the softmax."""
    for leaf, (_, axes) in zip(leaves, SOWN[name], strict=True):
        assert np.isfinite(leaf).all()
        if axes is not None:
            assert abs(np.sum(leaf, axes) - 1).max() < 1e-5


@pytest.mark.parametrize("name", ATTENTION)
def test_each_sows_its_map(name):
    leaves = sown_by(name, jnp.float32)(0)
    assert [leaf.shape for leaf in leaves] == [shape for shape, _ in SOWN[name]]
    check_sums(name, leaves)


@pytest.mark.parametrize("name", [n for n in ATTENTION if any(axes for _, axes in SOWN[n])])
def test_softmaxes_of_bfloat16_sum_to_one_as_those_of_float32(name):
    """Computed in bfloat16 they would be off by 1e-3, unless they choose a single one of all."""
    run = sown_by(name, jnp.bfloat16)
    for offset in (0, 10):
        check_sums(name, run(offset))


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("cbam", 3),
        ("channel", 2),
        ("coordinate", 3),
        ("efficientnet_se", 1),  # the second has one channel: single products
        ("ese", 1),
        ("grouped_se", 2),
        ("lcbam", 3),
        ("mobilenet_v3_se", 2),
        ("ela", 2),
        ("global_context", 2),
        ("dia", 4),
        ("lsk", 1),
        ("fca", 2),
        ("gsop", 2),
        ("sca", 2),
        ("sca_channel", 2),
        ("sca_lite", 2),
        ("se", 2),
        ("simple_coordinate", 4),
        ("sk", 2),
        ("spatial", 1),
        ("spatial_separable", 2),
        ("strip", 2),
        ("strip_pooling", 2),
        ("triplet", 3),
    ],
)
def test_gates_multiply_in_full_float32_on_every_platform(name, layers):
    """By default an accelerator would multiply float32 in fewer bits."""
    layer = create_attention(name, **fields(name))
    x = jnp.ones((2, 4, 8, 32))
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    traced = jax.jit(layer.apply).trace(variables, x)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("precision_config = [#stablehlo<precision HIGHEST>") == layers


@pytest.mark.parametrize("name", ["ceca", "eca"])
def test_neighbouring_channels_are_weighted_outside_the_matrix_unit(name):
    """A TPU's single products are float32's own."""
    layer = create_attention(name, kernel_size=3)
    x = jnp.ones((2, 4, 8, 32))
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    traced = jax.jit(layer.apply).trace(variables, x)
    on_tpu = traced.lower(lowering_platforms=("tpu",)).as_text()
    elsewhere = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "convolution" not in on_tpu
    assert "dot_general" not in on_tpu
    assert "convolution" in elsewhere
    assert "precision HIGHEST" in elsewhere


def test_fields_prevail_over_the_variant():
    assert create_attention("se", reduction=4) == SqueezeExcite(reduction=4)
    layer = create_attention("cbam", variant="article_s2", kernel_size=5)
    assert layer == CBAM(kernel_size=5, use_bias=True, spatial_bias=True)
    assert create_attention("sca_lite") == DualAttention.lite()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "cbma"}, r"unknown attention 'cbma': did you mean cbam"),
        (
            {"name": "xyz"},
            r"'xyz': there is none like it\. \d+ are known: see `python -m flaxattn list`",
        ),
        ({"name": "cbam", "variant": "offical"}, r"variant of cbam 'offical': .*mean official\?"),
        ({"name": "se", "reductoin": 4}, r"unknown field of se 'reductoin': .*mean reduction\?"),
        ({"name": "se", "gate": 4}, r"field of se 'gate': .* Known: .*bias_init, .*use_bias"),
        ({"name": "sca_lite", "variant": "lite"}, "sca_lite is a variant already"),
        ({"name": "simplified_psa"}, "simplified_psa needs its field features"),
    ],
)
def test_what_there_is_not(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        create_attention(**arguments)


@pytest.mark.parametrize("name", ATTENTION)
def test_what_is_no_batch_of_maps_gets_a_sentence(name):
    layer = create_attention(name, **fields(name))
    one = (32,) if name == "non_local" else (8, 8, 32)  # which takes sequences of 8 too
    for x, sentence in (
        (
            jax.ShapeDtypeStruct(one, jnp.float32),
            rf"x of shape \({one[0]},.* is not \(N, .*x\[None\]",
        ),
        (jax.ShapeDtypeStruct((1, 4, 8, 32), jnp.uint8), r"x is of dtype uint8, .*astype\("),
    ):
        with pytest.raises(InputError, match=sentence):
            jax.eval_shape(layer.init, jax.random.key(0), x)


@pytest.mark.parametrize("name", ATTENTION)
def test_a_single_sample_of_a_vmap_has_its_batch_axis(name):
    layer = create_attention(name, **fields(name))
    x = jax.ShapeDtypeStruct((3, 2, 4, 8, 32), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def run(key, x):
        return jax.vmap(layer.apply, (None, 0))(layer.init(key, x[0]), x)

    assert jax.eval_shape(run, key, x).shape[:4] == (3, 2, 4, 8)


def test_psa_is_ambiguous_and_only_what_exists_is_offered():
    with pytest.raises(InputError, match="three papers' layers") as error:
        create_attention("psa")
    papers, offered = str(error.value).split(": use ")
    for name in ("psanet", "pyramid_squeeze", "polarized"):
        assert name in papers
    names = [item.split(" (")[0] for item in offered.rstrip(".").split(" or ")]
    assert "simplified_psa" in names
    assert set(names) <= ATTENTION.keys()
