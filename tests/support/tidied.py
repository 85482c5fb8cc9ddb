"""The passes that come before every recogniser."""

from llmc.passes.canonicalize import Canonicalize
from llmc.passes.eliminate_common import EliminateCommon
from llmc.passes.eliminate_dead import EliminateDead
from llmc.passes.fold_constants import FoldConstants
from llmc.passes.merge_views import MergeViews

TIDY = (Canonicalize(), FoldConstants(), EliminateCommon(), MergeViews(), EliminateDead())
