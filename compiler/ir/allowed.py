"""The ops that an artifact's graph may call: a closed list, so that loading a graph can only mean arithmetic.

All are functional, check the bounds of what they index, and touch nothing but their arguments. Ops that read files,
reinterpret memory, return memory as they find it, or write in place are absent; so is what transformer graphs never
hold. Every op of the dialect may be called.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

_ATEN = """
abs.default acos.default acosh.default add.Scalar add.Tensor addcdiv.default addcmul.default addmm.default
alias.default all.default all.dim amax.default amin.default any.default any.dim arange.default arange.start
arange.start_step argmax.default argmin.default argsort.default asin.default asinh.default atan.default atan2.default
atanh.default baddbmm.default bitwise_and.Scalar bitwise_and.Tensor bitwise_not.default bitwise_or.Scalar
bitwise_or.Tensor bitwise_xor.Scalar bitwise_xor.Tensor bmm.default cat.default ceil.default celu.default chunk.default
clamp.Tensor clamp.default clamp_max.default clamp_min.default clone.default constant_pad_nd.default contiguous.default
conv1d.default convolution.default copy.default copysign.Tensor cos.default cosh.default cummax.default cummin.default
cumprod.default cumsum.default diff.default digamma.default div.Scalar div.Tensor div.Tensor_mode elu.default
embedding.default eq.Scalar eq.Tensor erf.default erfc.default erfinv.default exp.default exp2.default expand.default
expand_as.default expm1.default flatten.using_ints flip.default floor.default floor_divide.default fmax.default
fmin.default fmod.Scalar fmod.Tensor frac.default full.default full_like.default gather.default ge.Scalar ge.Tensor
gelu.default glu.default group_norm.default gt.Scalar gt.Tensor hardshrink.default hardsigmoid.default
hardswish.default hardtanh.default heaviside.default hypot.default index.Tensor index_add.default index_copy.default
index_put.default index_select.default isfinite.default isin.Tensor_Scalar isin.Tensor_Tensor isinf.default
isnan.default kthvalue.default layer_norm.default le.Scalar le.Tensor leaky_relu.default lerp.Scalar lerp.Tensor
lgamma.default linalg_vector_norm.default linear.default log.default log10.default log1p.default log2.default
log_sigmoid.default log_sigmoid_forward.default log_softmax.int logaddexp.default logaddexp2.default
logcumsumexp.default logical_and.default logical_not.default logical_or.default logical_xor.default logit.default
logsumexp.default lt.Scalar lt.Tensor masked_fill.Scalar masked_fill.Tensor matmul.default max.default max.dim
maximum.default mean.default mean.dim median.dim min.default min.dim minimum.default mish.default mm.default mul.Scalar
mul.Tensor nan_to_num.default narrow.default ne.Scalar ne.Tensor neg.default new_full.default new_ones.default
new_zeros.default norm.ScalarOpt_dim one_hot.default ones.default ones_like.default permute.default pow.Scalar
pow.Tensor_Scalar pow.Tensor_Tensor prod.default prod.dim_int reciprocal.default relu.default relu6.default
remainder.Scalar remainder.Tensor repeat.default repeat_interleave.self_int reshape.default rms_norm.default
roll.default round.default rsqrt.default rsub.Scalar rsub.Tensor scalar_tensor.default
scaled_dot_product_attention.default scatter.src scatter.value scatter_add.default scatter_reduce.two select.int
select_scatter.default selu.default sigmoid.default sign.default silu.default sin.default sinc.default sinh.default
slice.Tensor slice_scatter.default softmax.int softplus.default softshrink.default sort.default
special_bessel_j0.default special_bessel_j1.default special_entr.default special_erfcx.default special_i0e.default
special_i1e.default special_log_ndtr.default special_ndtri.default split.Tensor split_with_sizes.default sqrt.default
square.default squeeze.dim squeeze.dims stack.default std.correction sub.Scalar sub.Tensor sum.default sum.dim_IntList
sym_size.int t.default tan.default tanh.default threshold.default topk.default transpose.int tril.default triu.default
trunc.default unbind.int unflatten.int unfold.default unsqueeze.default var.correction var.dim view.default
where.Scalar where.ScalarOther where.ScalarSelf where.self xlogy.Tensor zeros.default zeros_like.default
_softmax.default _to_copy.default
"""

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"operator.{function.__name__}": function
    for function in (operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.getitem)
}

_ALLOWED_ATEN = frozenset(_ATEN.split())


def op_name(target: object) -> str | None:
    """The name under which a graph file calls `target`, such as `aten.add.Tensor`; None when it may not be called."""
    if isinstance(target, OpOverload):
        name = f"{target._schema.name.replace('::', '.')}.{target._overloadname}"
        return name if op_named(name) is target else None
    return next((name for name, function in _FUNCTIONS.items() if function is target), None)


def op_named(name: str) -> Callable[..., Any] | None:
    """What a graph file calls by `name`; None when there is no such op or it may not be called."""
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    namespace, _, rest = name.partition(".")
    if namespace == "aten" and rest in _ALLOWED_ATEN:
        packet, _, overload = rest.partition(".")
        found: OpOverload = getattr(getattr(torch.ops.aten, packet), overload)
        return found
    return _dialect_op(rest) if namespace == "llmc" else None


def _dialect_op(rest: str) -> OpOverload | None:
    from llmc.ir.ops import DIALECT

    name, _, overload = rest.partition(".")
    if name not in DIALECT or overload != "default":
        return None
    found: OpOverload = getattr(torch.ops.llmc, name).default
    return found
