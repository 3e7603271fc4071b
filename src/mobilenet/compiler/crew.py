"""The threads that help with an image, and how they are woken: in LLVM's own language, so that neither they nor who
wakes them waits for Python's lock.

A helper is a thread and a piece of memory, `_WORDS` words, whose first says what the helper is at. After an image it
looks out for the next for some 50 µs and then sleeps; waking it takes longer than a small network does.
"""

import ctypes
import os
import weakref
from collections.abc import Sequence
from threading import Thread

import numpy as np
from numpy.typing import NDArray

from .loader import Code
from .targets import Target

LEAD, SERVE, DISMISS = "lead", "serve", "dismiss"
_IDLE, _ASKED, _ASLEEP, _DISMISSED, _AT_WORK = range(5)  # what a helper's first word says
_WORDS = 16  # of a helper: two cache lines
_JOB, _ME, _FUNCTIONS, _SEMAPHORE = 1, 2, 3, 8  # where in them: the last is a semaphore of the C library
_LOOKS = 1000  # of some 50 ns

PAUSES = {
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    "aarch64": ("declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)"),
}


class Crew:
    """Is helpers that do their part of a job whenever one is given out, and wait for the next."""

    def __init__(self, code: Code, together: str, helpers: int) -> None:
        """Starts the helpers: threads that end when this object does.

        Args:
            together: the function that a job is done with, `driver.TOGETHER`.
        """
        self.process = os.getpid()
        room = np.zeros((helpers + 1) * _WORDS, np.int64)
        begin = -room.ctypes.data % (8 * _WORDS) // 8
        self._helpers = room[begin : begin + helpers * _WORDS].reshape(helpers, _WORDS)
        libc = ctypes.CDLL(None)
        functions = [code.address[together], *map(system_function, ("sem_wait", "sem_post", "sched_yield"))]
        self._helpers[:, _ME] = range(1, helpers + 1)
        self._helpers[:, _FUNCTIONS : _FUNCTIONS + len(functions)] = functions
        begins = [helper.ctypes.data for helper in self._helpers]
        for place in begins:
            libc.sem_init(ctypes.c_void_p(place + 8 * _SEMAPHORE), 0, 0)
        serve = code.function(SERVE)
        self._lead, self._address = code.function(LEAD), begins[0]
        threads: list[Thread] = []
        weakref.finalize(self, _end, self._helpers, threads, code)  # also ends those before one that the system refuses
        for place in begins:
            thread = Thread(target=serve, args=(place, _LOOKS), daemon=True)
            threads.append(thread)
            thread.start()

    def do(self, job: int) -> None:
        """Does the job at an address with all helpers; returns when it is done and no helper needs it any more."""
        self._helpers[:, _JOB] = job
        self._lead(self._address, len(self._helpers))


def _end(helpers: NDArray[np.int64], threads: Sequence[Thread], code: Code) -> None:
    """Ends helpers' threads, whose memory and code may be freed then."""
    code.function(DISMISS)(helpers.ctypes.data, len(helpers))
    for thread in threads:
        if thread.ident is not None:  # else it was refused
            thread.join()  # in a process that was forked there is no thread to wait for, as Python knows


def system_function(name: str) -> int:
    """Returns the address of a function of the C library."""
    return ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value or 0


def modules(target: Target) -> dict[str, str]:
    """Returns the text of the module of each function, by its name."""
    declaration, pause = PAUSES[target.machine]
    head = f'target triple = "{target.triple}"\n'
    return {SERVE: f"{head}{declaration}\n{_serve(pause)}", LEAD: f"{head}{declaration}\n{_lead(pause)}",
            DISMISS: head + _dismiss()}  # fmt: skip


def _serve(pause: str) -> str:
    """Returns `void serve(helper, looks)`, which does what a helper's thread does until it is dismissed."""
    return f"""
define void @{SERVE}(ptr %helper, i64 %looks) nounwind {{
  %job.at = getelementptr i64, ptr %helper, i64 {_JOB}
  %me.at = getelementptr i64, ptr %helper, i64 {_ME}
  %together.at = getelementptr i64, ptr %helper, i64 {_FUNCTIONS}
  %wait.at = getelementptr i64, ptr %helper, i64 {_FUNCTIONS + 1}
  %semaphore = getelementptr i64, ptr %helper, i64 {_SEMAPHORE}
  br label %begin
begin:
  br label %look
look:
  %n = phi i64 [ 0, %begin ], [ %n.next, %pause ]
  %state = load atomic i64, ptr %helper acquire, align 8
  switch i64 %state, label %idle [ i64 {_ASKED}, label %take i64 {_ASLEEP}, label %sleep i64 {_DISMISSED}, label %end ]
take:
  %taken = cmpxchg ptr %helper, i64 {_ASKED}, i64 {_AT_WORK} acq_rel acquire
  %mine = extractvalue {{ i64, i1 }} %taken, 1
  br i1 %mine, label %work, label %begin
work:
  %together = load ptr, ptr %together.at
  %job = load ptr, ptr %job.at
  %me = load i64, ptr %me.at
  call void %together(ptr %job, i64 %me)
  store atomic i64 {_IDLE}, ptr %helper release, align 8
  br label %begin
idle:
  %n.next = add i64 %n, 1
  %early = icmp ult i64 %n.next, %looks
  br i1 %early, label %pause, label %tired
pause:
  {pause}
  br label %look
tired:
  %tried = cmpxchg ptr %helper, i64 {_IDLE}, i64 {_ASLEEP} acq_rel acquire
  br label %begin
sleep:
  %wait = load ptr, ptr %wait.at
  %woken = call i32 %wait(ptr %semaphore)
  br label %begin
end:
  ret void
}}
"""


def _lead(pause: str) -> str:
    """Returns `void lead(helpers, count)`, which does a job as the first of those who do it.

    A helper that has not begun by the end of the job is not needed any more; one that has is waited for.
    """
    return f"""
define void @{LEAD}(ptr %helpers, i64 %count) nounwind {{
  br label %ask
{_for_each("ask", f"xchg ptr %ask.helper, i64 {_ASKED} acq_rel", "work")}
work:
  %together.at = getelementptr i64, ptr %helpers, i64 {_FUNCTIONS}
  %together = load ptr, ptr %together.at
  %job.at = getelementptr i64, ptr %helpers, i64 {_JOB}
  %job = load ptr, ptr %job.at
  call void %together(ptr %job, i64 0)
  %yield.at = getelementptr i64, ptr %helpers, i64 {_FUNCTIONS + 3}
  %yield = load ptr, ptr %yield.at
  br label %done
done:
  %i = phi i64 [ 0, %work ], [ %i.next, %free ]
  %helper = getelementptr [{_WORDS} x i64], ptr %helpers, i64 %i
  %tried = cmpxchg ptr %helper, i64 {_ASKED}, i64 {_IDLE} acq_rel acquire
  br label %look
{waiting("done", "%helper", f"icmp eq i64 %now, {_AT_WORK}", "free", _LOOKS, pause)}
free:
  %i.next = add i64 %i, 1
  %more = icmp ult i64 %i.next, %count
  br i1 %more, label %done, label %end
end:
  ret void
}}
"""


def waiting(before: str, place: str, unfinished: str, after: str, looks: int, pause: str) -> str:
    """Returns a loop that looks at a word again and again, `looks` times before it offers its processor to others.

    Args:
        before, after: the blocks that the loop is between.
        unfinished: what is so of `%now`, the word, as long as it is waited for.
        pause: of the machine's, between two looks; `%yield` is the system's function.
    """
    return f"""look:
  %looks = phi i64 [ 0, %{before} ], [ %looks.next, %again ]
  %now = load atomic i64, ptr {place} acquire, align 8
  %unfinished = {unfinished}
  br i1 %unfinished, label %wait, label %{after}
wait:
  %looks.next = add i64 %looks, 1
  %early = icmp ult i64 %looks.next, {looks}
  br i1 %early, label %pause, label %offer
pause:
  {pause}
  br label %again
offer:
  %offered = call i32 %yield()
  br label %again
again:
  br label %look"""


def _dismiss() -> str:
    """Returns `void dismiss(helpers, count)`, after which the helpers' threads end."""
    return f"""
define void @{DISMISS}(ptr %helpers, i64 %count) nounwind {{
  br label %ask
{_for_each("ask", f"xchg ptr %ask.helper, i64 {_DISMISSED} acq_rel", "end")}
end:
  ret void
}}
"""


def _for_each(name: str, change: str, after: str) -> str:
    """Returns a loop over the helpers that changes what they are at and wakes those that were asleep."""
    return f"""
{name}:
  %{name}.i = phi i64 [ 0, %0 ], [ %{name}.next, %{name}.awake ]
  %{name}.helper = getelementptr [{_WORDS} x i64], ptr %helpers, i64 %{name}.i
  %{name}.was = atomicrmw {change}
  %{name}.slept = icmp eq i64 %{name}.was, {_ASLEEP}
  br i1 %{name}.slept, label %{name}.wake, label %{name}.awake
{name}.wake:
  %{name}.semaphore = getelementptr i64, ptr %{name}.helper, i64 {_SEMAPHORE}
  %{name}.post.at = getelementptr i64, ptr %{name}.helper, i64 {_FUNCTIONS + 2}
  %{name}.post = load ptr, ptr %{name}.post.at
  %{name}.posted = call i32 %{name}.post(ptr %{name}.semaphore)
  br label %{name}.awake
{name}.awake:
  %{name}.next = add i64 %{name}.i, 1
  %{name}.more = icmp ult i64 %{name}.next, %count
  br i1 %{name}.more, label %{name}, label %{after}
"""
