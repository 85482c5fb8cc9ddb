"""Options are validated in one place; an argument wins over its environment variable."""

from pathlib import Path

import pytest

from llmc.errors import BadOption
from llmc.options import Options, cache_directory


def test_nothing_given_means_the_defaults() -> None:
    assert Options.read(environment={}) == Options(dtype=None, max_context=None, prove=True, dump=None, stop_after=None)


def test_the_environment_completes_what_is_not_given() -> None:
    options = Options.read(environment={"LLMC_DUMP": "out", "LLMC_STOP_AFTER": "37"})
    assert (options.dump, options.stop_after) == (Path("out"), 37)


def test_an_argument_wins_over_the_environment() -> None:
    options = Options.read(dump="mine", stop_after=0, environment={"LLMC_DUMP": "out", "LLMC_STOP_AFTER": "37"})
    assert (options.dump, options.stop_after) == (Path("mine"), 0)


def test_an_empty_variable_is_as_good_as_none() -> None:
    assert Options.read(environment={"LLMC_DUMP": "", "LLMC_STOP_AFTER": ""}) == Options()


@pytest.mark.parametrize("text", ["many", "-1", "1.5", "²", " 3"])
def test_a_variable_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(BadOption, match="LLMC_STOP_AFTER"):
        Options.read(environment={"LLMC_STOP_AFTER": text})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "int4"}, "use float32, float16, bfloat16"),
        ({"max_context": 0}, "use 1 or more"),
        ({"stop_after": -1}, "use 0 or more"),
        ({"quantize": "int4:16"}, "use float, fp8, int8, int6, int4, int4:64, int4:128, keep"),
        ({"quantize": "int4", "head": "keep"}, "use float, fp8, int8, int6"),
        ({"head": "int8"}, "needs `quantize`"),
        ({"kv_dtype": "int4"}, "use float32, float16, bfloat16, int8, fp8"),
        ({"dump": Path(__file__)}, "is a file; name a directory"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_way_out(fields: dict[str, object], message: str) -> None:
    with pytest.raises(BadOption, match=message):
        Options(**fields)


def test_the_cache_is_where_the_environment_says() -> None:
    assert cache_directory({"LLMC_CACHE": "/a"}) == Path("/a")
    assert cache_directory({"XDG_CACHE_HOME": "/b"}) == Path("/b/llmc")
    assert cache_directory({}) == Path.home() / ".cache" / "llmc"
    with pytest.raises(BadOption, match="is a file"):
        cache_directory({"LLMC_CACHE": __file__})
