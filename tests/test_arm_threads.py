"""What threads do on an Arm processor, one thread at a time: each function of the driver and of the crew, emulated.

What the others would do meanwhile functions do that stand for the system's; all write down when they are called.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from arm_linux import QEMU, ArmLinux
from compiler_tools import UNICORN
from mobilenet.compiler import driver
from mobilenet.compiler.build import compile_text
from mobilenet.compiler.crew import (
    _ASKED,
    _ASLEEP,
    _AT_WORK,
    _DISMISSED,
    _FUNCTIONS,
    _IDLE,
    _WORDS,
    DISMISS,
    LEAD,
    SERVE,
)
from mobilenet.compiler.driver import TOGETHER
from mobilenet.compiler.emulator import Emulator
from mobilenet.compiler.link import link
from mobilenet.compiler.targets import TARGETS

NEON = TARGETS["neon"]
MACHINES: dict[str, Callable[[], Emulator | ArmLinux]] = {}
if UNICORN:
    MACHINES["unicorn"] = lambda: Emulator(NEON)
if QEMU:
    MACHINES["qemu"] = ArmLinux
pytestmark = pytest.mark.skipif(not MACHINES, reason="needs unicorn or qemu-aarch64")

WAITED, POSTED, YIELDED, JOINED = 100, 200, 300, 400  # what is written down, with a kernel's or thread's number


class Arm:
    """Is an emulated processor with the driver's functions and some that stand for others'."""

    def __init__(self, kind: str) -> None:
        self.machine = MACHINES[kind]()
        self._said, self.crew = self.words([0] * 40), self.words([0] * 2 * _WORDS)
        texts = driver.modules(NEON)
        objects = [(name, compile_text(text, NEON)) for name, text in texts.items()]
        image, places = link(objects)
        code = self.machine.map(image, "rx")
        self.address = {name: code + place for name, place in zip(texts, places, strict=True)}

    def words(self, values: Sequence[int]) -> int:
        """Returns the address of new memory of these words."""
        return self.machine.map(np.array(values, np.int64).tobytes(), "rw")

    def read(self, address: int, count: int) -> list[int]:
        return np.frombuffer(self.machine.read(address, 8 * count), np.int64).tolist()

    @property
    def said(self) -> list[int]:
        """What was written down, in its order."""
        count, *words = self.read(self._said, 40)
        return words[:count]

    def function(self, arguments: str, number: str, changes: Sequence[tuple[int, int]] = ()) -> int:
        """Returns the address of a new function that writes a number down and changes words, each by its address."""
        text = f"""target triple = "{NEON.triple}"
            define i32 @function({arguments}) nounwind {{
              %said = inttoptr i64 {self._said} to ptr
              %n = load i64, ptr %said
              %n.next = add i64 %n, 1
              store i64 %n.next, ptr %said
              %place = getelementptr i64, ptr %said, i64 %n.next
              %what = add i64 {number}
              store i64 %what, ptr %place
              {" ".join(f"store i64 {word}, ptr inttoptr (i64 {place} to ptr)" for place, word in changes)}
              ret i32 0
            }}"""
        image, (place,) = link([("function", compile_text(text, NEON))])
        return self.machine.map(image, "rx") + place

    def event(self, number: int, *changes: tuple[int, int]) -> int:
        """Returns a function that stands for one of the system's."""
        return self.function("ptr %semaphore", f"{number}, 0", changes)

    def job(self, stretches: Sequence[Sequence[int]], begun: int | None = None) -> tuple[int, int]:
        """Returns a job whose parts have so many steps, and the address of its flags and counters; a part that is
        `begun` is done by another thread once it is offered the processor."""  # fmt: skip
        parts, threads = [steps for stretch in stretches for steps in stretch], len(stretches[0])
        flags = self.words([int(n == begun) for n in range(len(parts))] + [0] * len(stretches))
        counter = flags + 8 * (len(parts) + (begun or 0) // threads)
        step = self.function("ptr %o, ptr %s, ptr %p, ptr %e, i64 %begin, i64 %end", "%begin, %end")
        tables = [self.words([word for n in range(steps) for word in (step, 0, 0, 0, 0, 10 * part, n)])
                  for part, steps in enumerate(parts)]  # fmt: skip
        entries = [word for entry in zip(tables, parts, strict=True) for word in entry]
        return self.words([len(stretches), threads, flags, self.event(YIELDED, (counter, threads)), *entries]), flags

    def helpers(self, states: Sequence[int], job: int, together: int, **changes: tuple[int, int]) -> None:
        """Puts helpers that are at these states where helpers are, with what the system's functions change."""
        system = (("wait", WAITED), ("post", POSTED), ("offer", YIELDED))
        functions = [together, *(self.event(n, *([changes[name]] if name in changes else [])) for name, n in system)]
        rows = [[state, job, number, *functions] for number, state in enumerate(states, 1)]
        words = [word for row in rows for word in row + [0] * (_WORDS - len(row))]
        self.machine.write(self.crew, np.array(words, np.int64).tobytes())

    def call(self, name: str, *arguments: int) -> None:
        self.machine.call(self.address[name], *arguments)

    @property
    def states(self) -> list[int]:
        """What helpers are at."""
        return self.read(self.crew, 2 * _WORDS)[::_WORDS]


@pytest.fixture(params=MACHINES)
def arm(request: pytest.FixtureRequest) -> Arm:
    return Arm(request.param)


@pytest.mark.parametrize("me", [0, 1, 2])
def test_a_thread_does_its_own_parts_and_then_those_that_nobody_has_begun(arm: Arm, me: int) -> None:
    job, flags = arm.job([(2, 1, 0), (1, 0, 3)])
    arm.call(TOGETHER, job, me)
    steps = {0: [0, 1], 1: [10], 2: [], 3: [30], 4: [], 5: [50, 51, 52]}
    assert arm.said == [step for first in (0, 3) for n in range(3) for step in steps[first + (me + n) % 3]]
    assert arm.read(flags, 6 + 2) == [1] * 6 + [3, 3]


def test_a_thread_waits_for_a_part_that_another_has_begun(arm: Arm) -> None:
    job, flags = arm.job([(1, 1), (1, 1)], begun=1)
    arm.call(TOGETHER, job, 0)
    assert arm.said == [0, YIELDED, 20, 30]
    assert arm.read(flags, 4 + 2) == [1] * 4 + [2, 2]


def test_who_leads_wakes_all_and_needs_nobody_who_has_not_begun(arm: Arm) -> None:
    job, flags = arm.job([(1, 1, 1)])
    arm.helpers([_IDLE, _ASLEEP], job, arm.address[TOGETHER])
    arm.call(LEAD, arm.crew, 2)
    assert arm.said == [POSTED, 0, 10, 20]  # for the one that was asleep
    assert arm.states == [_IDLE, _IDLE]
    assert arm.read(flags, 4) == [1, 1, 1, 3]


def test_who_leads_waits_for_a_helper_at_work(arm: Arm) -> None:
    second = arm.crew + 8 * _WORDS
    joined = arm.function("ptr %job, i64 %me", f"{JOINED}, %me", [(second, _AT_WORK)])
    arm.helpers([_IDLE, _IDLE], 0, joined, offer=(second, _IDLE))
    arm.call(LEAD, arm.crew, 2)
    assert arm.said == [JOINED, YIELDED]
    assert arm.states == [_IDLE, _IDLE]


def test_a_helper_does_what_it_is_asked_for_sleeps_and_ends(arm: Arm) -> None:
    together = arm.function("ptr %job, i64 %me", f"{JOINED}, %me")
    arm.helpers([_ASKED, _IDLE], 0, together, wait=(arm.crew, _DISMISSED))
    arm.call(SERVE, arm.crew, 5)
    assert arm.said == [JOINED + 1, WAITED]
    assert arm.states == [_DISMISSED, _IDLE]


def test_a_helper_that_is_woken_works_again(arm: Arm) -> None:
    then = arm.event(WAITED, (arm.crew, _DISMISSED))
    together = arm.function("ptr %job, i64 %me", f"{JOINED}, %me", [(arm.crew + 8 * (_FUNCTIONS + 1), then)])
    arm.helpers([_IDLE, _IDLE], 0, together, wait=(arm.crew, _ASKED))
    arm.call(SERVE, arm.crew, 5)
    assert arm.said == [WAITED, JOINED + 1, WAITED]
    assert arm.states == [_DISMISSED, _IDLE]


def test_helpers_are_dismissed_asleep_or_not(arm: Arm) -> None:
    arm.helpers([_ASLEEP, _IDLE], 0, 0)
    arm.call(DISMISS, arm.crew, 2)
    assert arm.said == [POSTED]
    assert arm.states == [_DISMISSED, _DISMISSED]
