"""What is set aside from Python's collections of garbage."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from lightning_hpo.runtime import garbage

PROGRAM = """
import atexit, gc, weakref

class Node:
    pass

def node():
    made = Node()
    made.itself = made
    return weakref.ref(made)

atexit.register(lambda: print("at the end:", gc.get_freeze_count(), before() is None or gc.collect() > 0))
from lightning_hpo.runtime.garbage import set_aside
before = node()
set_aside()
after = node()
gc.collect()
print(gc.get_freeze_count() > 1000, before() is not None, after() is None, gc.isenabled())
"""


def test_what_was_there_is_left_alone_and_what_comes_is_collected_until_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["True True True True", "at the end: 0 True"]


@pytest.mark.parametrize("enabled", [True, False])
def test_after_a_stretch_without_collections_they_are_as_before(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(KeyError), garbage.no_collections():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
