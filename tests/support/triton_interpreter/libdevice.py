"""Functions of NVIDIA's device library, by symbol, computed in the precision of their type by numpy or torch."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import triton.language as tl
from support.triton_interpreter.arithmetic import numpy_type
from support.triton_interpreter.formats import Array
from support.triton_interpreter.ptx import Assembly
from support.triton_interpreter.values import Value

Function = Callable[..., Array]


def _from_torch(function: Callable[[torch.Tensor], torch.Tensor]) -> Function:
    return lambda x: function(torch.from_numpy(np.ascontiguousarray(x))).numpy()


def _round_half_away(x: Array) -> Array:
    found: Array = np.trunc(x + np.copysign(np.nextafter(x.dtype.type(0.5), x.dtype.type(0)), x))
    return found


_FLOATS: dict[str, Function] = {
    **{name: getattr(np, name) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "exp", "exp2", "expm1")},
    **{name: getattr(np, name) for name in ("log", "log2", "log10", "log1p", "sqrt", "cbrt", "floor", "ceil", "trunc")},
    **{name: getattr(np, name) for name in ("rint", "fmod", "hypot", "copysign", "nextafter")},
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "atan2": np.arctan2,
    "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh,
    "exp10": lambda x: np.power(x.dtype.type(10), x),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "rcbrt": lambda x: 1 / np.cbrt(x),
    "pow": np.power, "powi": lambda x, y: np.power(x, y.astype(x.dtype)),
    "fabs": np.abs, "nearbyint": np.rint, "round": _round_half_away,
    "remainder": lambda x, y: x - y * np.rint(x / y),
    "fdim": lambda x, y: np.where(x > y, x - y, 0),
    "ldexp": lambda x, y: np.ldexp(x, y), "scalbn": lambda x, y: np.ldexp(x, y),
    "sinpi": lambda x: np.sin(np.fmod(x, 2) * np.pi), "cospi": lambda x: np.cos(np.fmod(x, 2) * np.pi),
    "erf": _from_torch(torch.erf), "erfc": _from_torch(torch.erfc), "erfinv": _from_torch(torch.erfinv),
    "erfcx": _from_torch(torch.special.erfcx), "lgamma": _from_torch(torch.lgamma),
    "tgamma": lambda x: np.exp(_from_torch(torch.lgamma)(x)),
    "normcdf": _from_torch(torch.special.ndtr), "normcdfinv": _from_torch(torch.special.ndtri),
    "cyl_bessel_i0": _from_torch(torch.special.i0), "cyl_bessel_i1": _from_torch(torch.special.i1),
}  # fmt: skip
"""By the name of the function on doubles; that on floats ends in f."""

_EXACT: dict[str, Function] = {
    "fast_expf": np.exp, "fast_exp10f": _FLOATS["exp10"], "fast_logf": np.log, "fast_log2f": np.log2,
    "fast_log10f": np.log10, "fast_sinf": np.sin, "fast_cosf": np.cos, "fast_tanf": np.tan, "fast_powf": np.power,
    "fast_fdividef": np.divide, "saturatef": lambda x: np.where(x > 0, np.minimum(x, 1), 0),
    "frsqrt_rn": _FLOATS["rsqrt"], "frcp_rn": lambda x: 1 / x, "fsqrt_rn": np.sqrt, "drcp_rn": lambda x: 1 / x,
    "dsqrt_rn": np.sqrt,
    **{f"{kind}{name}_rn": operation for kind in "fd" for name, operation in
       {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}.items()},
    "abs": np.abs, "llabs": np.abs,
    "popc": np.bitwise_count, "popcll": np.bitwise_count,
    "isnanf": np.isnan, "isnand": np.isnan, "isinff": np.isinf, "isinfd": np.isinf,
    "finitef": np.isfinite, "isfinited": np.isfinite, "signbitf": np.signbit, "signbitd": np.signbit,
    "float_as_int": lambda x: x.view(np.int32), "float_as_uint": lambda x: x.view(np.uint32),
    "int_as_float": lambda x: x.view(np.float32), "uint_as_float": lambda x: x.view(np.float32),
    "double_as_longlong": lambda x: x.view(np.int64), "longlong_as_double": lambda x: x.view(np.float64),
    "float2int_rn": lambda x: np.rint(x), "float2int_rz": np.trunc, "float2int_rd": np.floor, "float2int_ru": np.ceil,
    "llrint": np.rint, "llrintf": np.rint, "llround": _round_half_away, "llroundf": _round_half_away,
    "umulhi": lambda x, y: (x.astype(np.uint64) * y.astype(np.uint64)) >> np.uint64(32),
    "mulhi": lambda x, y: (x.astype(np.int64) * y.astype(np.int64)) >> np.int64(32),
}  # fmt: skip
FUNCTIONS: dict[str, Function] = {
    **{f"__nv_{name}": function for name, function in _FLOATS.items()},
    **{f"__nv_{name}f": function for name, function in _FLOATS.items()},
    **{f"__nv_{name}": function for name, function in _EXACT.items()},
}
"""By symbol; a function of the arguments' arrays, whose result becomes the symbol's type."""


class Interpreter(Assembly):
    """The builder that kernels run on."""

    def create_extern_elementwise(
        self, library: str, path: str, symbol: str, arguments: Sequence[Value], result: tl.dtype, pure: bool
    ) -> Value:
        """Call a function of the device library.

        Raises:
            NotImplementedError: it has no model.
        """
        function = FUNCTIONS.get(symbol)
        if function is None:
            raise NotImplementedError(f"{self.place()}: {symbol} has no model; add it to FUNCTIONS")
        found = function(*(argument.data for argument in arguments))
        return Value(found.astype(numpy_type(result), copy=False), result.scalar)
