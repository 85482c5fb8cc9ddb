"""The zoo: a tiny random model of every causal-LM family that transformers maps, and whether llmc compiles it right."""

from llmc.zoo.families import families, tiny, tiny_config
from llmc.zoo.table import Row, run_zoo

__all__ = ["Row", "families", "run_zoo", "tiny", "tiny_config"]
