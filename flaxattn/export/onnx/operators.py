"""Operators that jax2onnx writes otherwise than a runtime wants them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jax2onnx.plugins._ir_shapes import _stamp_type_and_shape
from jax2onnx.plugins.plugin_system import (
    PLUGIN_REGISTRY,
    PrimitiveLeafPlugin,
    import_all_plugins,
)

from flaxattn.errors import InputError


@contextmanager
def our_operators() -> Iterator[None]:
    """While it lasts, jax2onnx writes pads and pools as is said here."""
    import_all_plugins()
    theirs = {name: PLUGIN_REGISTRY[name] for name in OURS}
    PLUGIN_REGISTRY.update(OURS)
    try:
        yield
    finally:
        PLUGIN_REGISTRY.update(theirs)


class _Pad(PrimitiveLeafPlugin):
    """jax2onnx 0.13 to 0.17 cannot pad a map while the size of its batch is open."""

    def lower(self, ctx: Any, eqn: Any) -> None:
        x, value = (ctx.get_value_for_var(variable) for variable in eqn.invars)
        before, after, between = zip(*eqn.params["padding_config"], strict=True)
        if any(between):
            raise InputError(f"ONNX has no padding between elements, here {between}.")
        pads = ctx.builder.add_initializer_from_array(
            name=ctx.fresh_name("pads"), array=np.asarray([*before, *after], np.int64)
        )
        _answer(ctx, eqn, ctx.builder.Pad(x, pads, value, _outputs=[ctx.fresh_name("pad")]), x)


class _MaxPool(PrimitiveLeafPlugin):
    """jax2onnx pools over the channels too, with windows of one, which ONNX Runtime refuses."""

    def lower(self, ctx: Any, eqn: Any) -> None:
        x = ctx.get_value_for_var(eqn.invars[0])
        window = {"dilations": eqn.params["window_dilation"][2:], **_window(eqn)}
        _answer(ctx, eqn, ctx.builder.MaxPool(x, _outputs=[ctx.fresh_name("pool")], **window), x)


class _SumPool(PrimitiveLeafPlugin):
    """Likewise, as a mean times the number of its elements."""

    def lower(self, ctx: Any, eqn: Any) -> None:
        x = ctx.get_value_for_var(eqn.invars[0])
        dilations = eqn.params["window_dilation"]
        if any(dilation != 1 for dilation in dilations):
            raise InputError(f"ONNX has no sum of windows with dilations {dilations}.")
        count = ctx.builder.add_initializer_from_array(
            name=ctx.fresh_name("count"),
            array=np.asarray(math.prod(eqn.params["window_dimensions"]), eqn.invars[0].aval.dtype),
        )
        mean = ctx.builder.AveragePool(
            x, _outputs=[ctx.fresh_name("mean")], count_include_pad=1, **_window(eqn)
        )
        mean.type = x.type
        _answer(ctx, eqn, ctx.builder.Mul(mean, count, _outputs=[ctx.fresh_name("sum")]), x)


def _window(eqn: Any) -> dict[str, Any]:
    """The window over the positions of a map, as ONNX writes it."""
    size, strides = eqn.params["window_dimensions"], eqn.params["window_strides"]
    if (*size[:2], *strides[:2], *eqn.params["base_dilation"]) != (1,) * (4 + len(size)):
        raise InputError(f"ONNX has no pool with window {size} and strides {strides}.")
    padding = eqn.params["padding"][2:]
    before, after = zip(*padding, strict=True)
    if not all(0 <= n < k for k, pads in zip(size[2:], padding, strict=True) for n in pads):
        raise InputError(f"ONNX pads a pool by 0 to window - 1: {padding} for {size[2:]} is not.")
    return {
        "kernel_shape": size[2:],
        "strides": strides[2:],
        "pads": (*before, *after),
    }


def _answer(ctx: Any, eqn: Any, value: Any, like: Any) -> None:
    value.type = like.type
    _stamp_type_and_shape(value, eqn.outvars[0].aval.shape)
    ctx.bind_value_for_var(eqn.outvars[0], value)


OURS = {"pad": _Pad(), "reduce_window_max": _MaxPool(), "reduce_window_sum": _SumPool()}
