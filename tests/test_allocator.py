"""Freed memory is kept while it is wanted, and only then."""

import ctypes
import resource

import numpy as np
import pytest

from mobilenet.training.allocator import keeping_memory

PAGES = (64 << 20) // resource.getpagesize()


def faults_of_an_array() -> int:
    """Returns how many pages the system had to give for an array of 64 MiB, which is freed again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(64 << 20, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_memory_is_kept_inside_and_given_back_after() -> None:
    huge = 512  # a page of 2 MiB, where the system gives those unasked, stands for as many
    assert faults_of_an_array() >= PAGES // huge
    with keeping_memory():
        faults_of_an_array()
        assert faults_of_an_array() < PAGES // huge
    assert faults_of_an_array() >= PAGES // huge


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with keeping_memory():
        assert faults_of_an_array() > 0
