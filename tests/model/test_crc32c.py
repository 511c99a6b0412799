"""The reader's checksum, worked out beside the decoding, is that of the library that the writer uses."""

from __future__ import annotations

import os
import subprocess
import sys

import google_crc32c
import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import crc32c

WAYS = [crc32c.by_table] + [crc32c.by_instruction] * crc32c.has_instruction()


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
    return over(request.param)


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_it_is_crc_32c(all_of, numbers):
    array = np.array(numbers, "<u4")
    assert int(all_of(array)) ^ crc32c.BEFORE == google_crc32c.value(array.tobytes())


def test_a_processor_without_the_instruction_reads_the_same(tmp_path):
    """What numba compiles for is what counts: a container may be told to be plain, to run anywhere."""
    program = """if True:
        import numpy as np
        from model import crc32c
        from model.entropy import Coder
        from model.tables import gaussian_tables

        assert not crc32c.has_instruction()
        symbols, tables = np.arange(-50, 50, dtype=np.int32), np.full(100, 40, np.int16)
        coder = Coder(gaussian_tables())
        decoder = coder.decoder(coder.encode([(symbols, tables)]))
        assert (decoder.read(tables) == symbols).all()
        decoder.finish()
    """
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | plain, timeout=300)
