"""The passes a model goes through, in order. Read this second, after `llmc.ir`."""

from collections.abc import Mapping, Sequence

from llmc.ir.pass_manager import Pass
from llmc.passes.cancel_permutes import CancelPermutes
from llmc.passes.canonicalize import Canonicalize
from llmc.passes.drop_batch_dim import DropBatchDim
from llmc.passes.eliminate_common import EliminateCommon
from llmc.passes.eliminate_dead import EliminateDead
from llmc.passes.fold_constants import FoldConstants
from llmc.passes.fold_norm_weights import FoldNormWeights
from llmc.passes.fold_query_scale import FoldQueryScale
from llmc.passes.fuse_gate_up import FuseGateUp
from llmc.passes.fuse_qkv import FuseQkv
from llmc.passes.join_writes import JoinWrites
from llmc.passes.lift_masks import LiftMasks
from llmc.passes.make_incremental import MakeIncremental
from llmc.passes.merge_views import MergeViews
from llmc.passes.narrow_cache import NarrowCache
from llmc.passes.pack_weights import PackWeights
from llmc.passes.recognize_attention import RecognizeAttention
from llmc.passes.recognize_gated_mlp import RecognizeGatedMlp
from llmc.passes.recognize_norms import RecognizeNorms
from llmc.passes.recognize_rope import RecognizeRope
from llmc.passes.remove_kv_repeats import RemoveKvRepeats


def pipeline(pack: PackWeights | None = None, cache: str | None = None) -> Mapping[str, Sequence[Pass]]:
    """The phases of a build, each a name and its passes.

    `pack` is for native programs, which read packed weights; `cache` is the dtype of keys and values in the cache,
    the model's own when None. Weights that are to be rounded, or kept as they are stored, are not scaled before.
    """
    floats = pack is None or pack.weights == "float"
    together = pack is not None and pack.weights != "keep"
    phases: dict[str, Sequence[Pass]] = {
        # One spelling for each thing, so that every later rule needs only one pattern.
        "tidy": (
            EliminateDead(),  # first, so that nothing is tidied that nothing reads
            Canonicalize(),
            JoinWrites(),  # an empty tensor belongs to no token
            FoldConstants(),  # before masks are lifted: ALiBi's slopes are constants only then
            EliminateCommon(),
            MergeViews(),
        ),
        # Give the model's idioms their names, in a neutral form.
        "recognize": (
            RecognizeAttention(),  # while masks are still tensors: they are part of what is recognised
            RemoveKvRepeats(),  # after attention has a name: it then reads few key heads itself
            FoldQueryScale(),  # attention has a scale by itself
            RecognizeNorms(),
            RecognizeRope(),
            RecognizeGatedMlp(),
        ),
        # From one whole sequence to a step of packed tokens.
        "incremental": (
            LiftMasks(),  # a mask over positions means the same for one token as for a sequence
            EliminateDead(),  # mask tensors are gone; what is left of index arithmetic are positions
            MakeIncremental(),
            Canonicalize(),
            MergeViews(),
            DropBatchDim(),  # values read [T, ...], not [1, T, ...]
            CancelPermutes(),  # heads stay behind tokens: nothing is moved between projection and attention
            MergeViews(),
            EliminateDead(),
        ),
        # What only inference can do.
        "specialize": (
            FuseQkv(together),
            FuseGateUp(together),
            FoldConstants(),  # the concatenated weights become recipes
            *([FoldNormWeights()] if floats else []),  # after the projections are merged: one product for all of them
        ),
        # Once more, over what the phases above left behind.
        "settle": (
            Canonicalize(),
            FoldConstants(),  # the scaled weights become recipes
            EliminateCommon(),
            MergeViews(),
            EliminateDead(),
        ),
    }
    if cache is not None:
        phases["cache"] = (NarrowCache(cache),)
    if pack is not None:
        # What was proved so far was proved on the weights as they are; from here on they are in their final form.
        phases["pack"] = (pack, FoldConstants())  # biases of experts are arranged as the weights are
    return phases
