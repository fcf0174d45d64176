"""What a recorded program may do: the operators that compute tensors from tensors, and nothing else.

A program comes out of a log, and so from whoever can write there. Therefore each operator is allowed by name, and none
of them reads or writes a file, loads code, changes a tensor in place (weights belong to the replica), or shows memory
that nobody has filled (`empty`, `as_strided`, `resize`). Which overload is meant is asked of the torch that is here;
one that writes into an argument, or gives something else than tensors, is refused whatever its name is.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch

Call = Callable[..., Any]
_LARGEST = 1 << 63
_RETURNED = frozenset({"Tensor", "List[Tensor]"})
_TENSOR_OPERATORS = """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _fft_c2r _fft_r2c _log_softmax _native_batch_norm_legit_no_training
    _softmax _to_copy _weight_norm abs acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d add addmm alias all amax amin any arange argmax argmin argsort asin
    asinh atan atan2 atanh avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bilinear bitwise_and bitwise_not
    bitwise_or bitwise_xor bmm broadcast_to bucketize cat ceil celu chunk clamp clamp_max clamp_min clone concat
    constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
    cos cosh cosine_similarity cumprod cumsum detach diagonal diff div dropout einsum elu embedding embedding_bag eq
    erf exp expand expand_as expm1 feature_dropout fft_fft fft_ifft fft_irfft fft_rfft fill flatten flip floor
    floor_divide fmod full full_like gather ge gelu glu grid_sampler group_norm gru gt hardshrink hardsigmoid
    hardswish hardtanh hstack index index_add index_select instance_norm isfinite isinf isnan layer_norm le
    leaky_relu lerp lift_fresh_copy linalg_vector_norm linear log log10 log1p log2 log_sigmoid log_softmax
    logical_and logical_not logical_or logical_xor logsumexp lstm lt masked_fill masked_select matmul max max_pool1d
    max_pool2d max_pool2d_with_indices max_pool3d maximum mean meshgrid min minimum mish mm movedim mul multiply mv
    narrow native_group_norm native_layer_norm ne neg new_full new_ones new_zeros nonzero norm one_hot ones
    ones_like pad permute pixel_shuffle pixel_unshuffle pow prelu prod reciprocal reflection_pad1d reflection_pad2d
    reflection_pad3d relu relu6 remainder repeat repeat_interleave replication_pad1d replication_pad2d
    replication_pad3d reshape rms_norm rnn_relu rnn_tanh roll round rsqrt rsub scalar_tensor
    scaled_dot_product_attention scatter scatter_add scatter_reduce searchsorted select select_scatter selu sigmoid
    sign silu sin sinh slice slice_scatter softmax softplus softshrink sort split split_with_sizes sqrt square
    squeeze stack std sub sum swapaxes t tan tanh threshold tile to topk transpose tril triu trunc type_as unbind
    unflatten unfold unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_trilinear3d var var_mean view view_as vstack where zeros
    zeros_like
"""
_ALLOWED = frozenset(_TENSOR_OPERATORS.split())
CHECKS = frozenset(
    {
        "aten._assert_async.msg",
        "aten._assert_scalar.default",
        "aten._assert_tensor_metadata.default",
        "aten.sym_constrain_range.default",
        "aten.sym_constrain_range_for_size.default",
    }
)
"""What an exported program only checks by; the server checks its requests itself."""


def _number(value: Any) -> int | float:
    # Bounded, or a few multiplications would fill the memory with one number.
    if not isinstance(value, int | float) or (isinstance(value, int) and not -_LARGEST <= value < _LARGEST):
        raise ValueError(f"an index arithmetic of {type(value).__name__}, or beyond 64 bits")
    return value


def _arithmetic(function: Callable[..., Any]) -> Call:
    def call(*values: Any) -> int | float:
        return _number(function(*map(_number, values)))

    return call


def _item(values: Any, at: Any) -> Any:
    if not isinstance(values, tuple | list) or not isinstance(at, int):
        raise ValueError(f"item {at!r} of a {type(values).__name__}")
    return values[at]


def _size(x: torch.Tensor, dim: int) -> int:
    return x.shape[dim]


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "floordiv": operator.floordiv,
    "truediv": operator.truediv, "mod": operator.mod, "neg": operator.neg, "eq": operator.eq, "ne": operator.ne,
    "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip
_PYTHON: dict[str, Call] = {
    **{f"_operator.{name}": _arithmetic(function) for name, function in _ARITHMETIC.items()},
    "_operator.getitem": _item,
    "math.ceil": _arithmetic(math.ceil),
    "math.floor": _arithmetic(math.floor),
    "math.trunc": _arithmetic(math.trunc),
    "torch.sym_float": _arithmetic(float),
    "torch.sym_int": _arithmetic(int),
    "torch.sym_max": _arithmetic(max),
    "torch.sym_min": _arithmetic(min),
    "torch.sym_sum": lambda values: _number(sum(map(_number, values))),
    "aten.sym_size.int": _size,
    "aten.sym_numel.default": lambda x: x.numel(),
}


def find_operator(name: str) -> Call | str:
    """The function behind an operator's name, such as `aten.conv2d.default`; or why there is none, in one line."""
    if name in _PYTHON:
        return _PYTHON[name]
    space, _, rest = name.partition(".")
    packet_name, _, overload_name = rest.partition(".")
    if space != "aten" or packet_name not in _ALLOWED:
        return f"{name[:80]!r} is not an operator that a program may use"
    packet = getattr(torch.ops.aten, packet_name, None)
    if packet is None or overload_name not in packet.overloads():
        return f"{name[:80]!r} is not an operator of the torch that is here"
    found: Call = getattr(packet, overload_name)
    if is_mutable(found):
        return f"{name[:80]!r} writes into its arguments"
    if any(str(each.type) not in _RETURNED for each in found._schema.returns):  # type: ignore[attr-defined]
        return f"{name[:80]!r} does not give tensors"
    return found


def is_mutable(call: Any) -> bool:
    """Whether an operator writes into what it is given."""
    schema = getattr(call, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def name_of(target: Any) -> str:
    """The name by which a program's node calls what `torch.export` put there; `find_operator`'s inverse."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', target)}"
