"""Work in threads, a bounded amount at a time: decoders release Python's lock, so threads are enough.

Pools of threads are imported where there is one: with `logging`, which they import, that takes 6 ms.
"""

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4  # items a thread that are begun or done before the first of them is taken: one may take long


def processors() -> int:
    """Returns the number of processors this process may run on (a container's share, not the machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def for_each(work: Callable[[int], None], count: int, threads: int) -> None:
    """Does `work(n)` of each n below `count`, in threads of which the caller's is one.

    Where all were new and the caller waited, two images on two threads took as long as one after the other: such
    threads seem to begin on one processor. After an exception, in whichever thread, none takes another n.
    """
    waiting = deque(range(count))  # its popleft is atomic

    def do() -> None:
        try:
            while True:
                try:
                    n = waiting.popleft()
                except IndexError:
                    return
                work(n)
        finally:
            waiting.clear()

    helpers = min(threads, count) - 1
    if helpers < 1:
        do()
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(helpers) as pool:
        try:
            helping = [pool.submit(do) for _ in range(helpers)]
            do()
        finally:
            waiting.clear()
        for helper in helping:
            helper.result()


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int, stop: threading.Event
) -> Generator[Result, None, None]:
    """Yields `work(item)` of each item as it gets ready, in any order, with at most two items a thread in hand.

    When the caller stops early, for whatever reason, `stop` is set (long work should look at it) and the threads are
    joined before the exception goes on. Close the iterator (`contextlib.closing`) to be sure when that happens.
    """
    from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

    pool = ThreadPoolExecutor(threads)
    waiting: set[Future[Result]] = set()
    try:
        for item in items:
            waiting.add(pool.submit(work, item))
            if len(waiting) >= 2 * threads:
                ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in ready)
        while waiting:
            ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in ready)
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Generator[Result, None, None]:
    """Yields `work(item)` of each item in the items' order, with at most `AHEAD` items a thread in hand.

    A single item is worked on by the caller's thread.
    """
    left = iter(items)
    first = list(itertools.islice(left, 2))
    if len(first) < 2:
        yield from map(work, first)
        return
    from concurrent.futures import ThreadPoolExecutor

    left = itertools.chain(first, left)
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[Result]] = deque()
    try:
        while True:
            wanted = AHEAD * threads - len(waiting)
            waiting.extend(pool.submit(work, item) for item in itertools.islice(left, wanted))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
