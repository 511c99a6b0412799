"""The reader's checksum, worked out beside the decoding, is that of the library that the writer uses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import google_crc32c
import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import crc32c
from model.vectors import has

WAYS = [crc32c.by_table] + [crc32c.by_instruction] * has("crc32")


def over(update):
    @numba.njit
    def all_of(numbers):
        register = np.uint32(crc32c.BEFORE)
        for number in numbers:
            register = update(register, number)
        return register

    return all_of


@pytest.fixture(scope="module", params=WAYS)
def all_of(request):
    compiled = over(request.param)
    compiled(np.zeros(0, "<u4"))
    return compiled


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_it_is_crc_32c(all_of, numbers):
    array = np.array(numbers, "<u4")
    assert int(all_of(array)) ^ crc32c.BEFORE == google_crc32c.value(array.tobytes())


def test_the_instruction_is_used_where_there_is_one():
    flags = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    assert has("crc32") == bool(re.search(r"^flags\b.*\bsse4_2\b", flags, re.MULTILINE))


@pytest.mark.parametrize("features", ["", "+sse4.2", "+sse4.2,-crc32"])
def test_where_numba_compiles_for_a_plain_processor_there_is_none(features):
    """Found by review: LLVM ends the process where it is told of SSE 4.2, but not of this one instruction."""
    program = """if True:
        import numba
        import numpy as np
        from model import crc32c

        update = crc32c.update
        zero = numba.njit(lambda register: update(register, np.uint32(0)))(np.uint32(crc32c.BEFORE))
        assert update is crc32c.by_table
        assert zero ^ crc32c.BEFORE == 0x48674BC7
    """
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features}
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | plain, timeout=120)
