"""How many random examples the properties are tested on: a fixed few, or as many as LLMC_EXAMPLES says."""

import os

from hypothesis import HealthCheck, settings

examples = settings(
    max_examples=int(os.environ.get("LLMC_EXAMPLES", "25")),
    derandomize="LLMC_EXAMPLES" not in os.environ,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
"""Settings of every property: the same examples in each run, and other ones with LLMC_EXAMPLES=200 pytest ..."""
