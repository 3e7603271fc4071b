"""What runs a plan, in LLVM's own language: the calls of a table one by one, and threads that wait for each other.

A table has a row for each call: the kernel's address, its four pointers, its two whole numbers.
"""

from .targets import Target

STEP_WORDS = 7
DRIVE, WAIT, MARK = "drive", "wait", "mark"

_PAUSES = {
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    "aarch64": ("declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)"),
}

# Clocks of constant speed that any program may read.
_CLOCKS = {
    "x86_64": ("declare i64 @llvm.readcyclecounter()", "call i64 @llvm.readcyclecounter()"),
    "aarch64": (
        'declare i64 @llvm.read_volatile_register.i64(metadata)\n!0 = !{!"cntvct_el0"}',
        "call i64 @llvm.read_volatile_register.i64(metadata !0)",
    ),
}


def modules(target: Target) -> dict[str, str]:
    """Returns the text of the module of each function, by its name."""
    return {DRIVE: _drive(target), WAIT: _wait(target), MARK: _mark(target)}


def _drive(target: Target) -> str:
    """Returns `void drive(steps, count)`, which makes the calls of a table, `STEP_WORDS` words each."""
    words = "\n".join(
        f"  %p{n} = getelementptr i64, ptr %step, i64 {n}\n  %w{n} = load {'ptr' if n < 5 else 'i64'}, ptr %p{n}"
        for n in range(STEP_WORDS)
    )
    return f"""
target triple = "{target.triple}"
define void @{DRIVE}(ptr %steps, i64 %count) nounwind {{
  %end = getelementptr [{STEP_WORDS} x i64], ptr %steps, i64 %count
  br label %next
next:
  %step = phi ptr [ %steps, %0 ], [ %following, %next ]
{words}
  call void %w0(ptr %w1, ptr %w2, ptr %w3, ptr %w4, i64 %w5, i64 %w6)
  %following = getelementptr [{STEP_WORDS} x i64], ptr %step, i64 1
  %more = icmp ult ptr %following, %end
  br i1 %more, label %next, label %done
done:
  ret void
}}
"""


def _wait(target: Target) -> str:
    """Returns a step at which threads wait for each other: `void wait(counter, yield, -, -, arrivals, spins)`.

    Each adds 1 to the counter and goes on when it has reached `arrivals`. A thread looks `spins` times before it begins
    to offer its processor, by the system's function `yield`, to whatever else wants to run: layers take from 10 µs to
    1 ms, and a thread that slept would take 50 µs to wake.
    """
    declaration, pause = _PAUSES[target.machine]
    return f"""
target triple = "{target.triple}"
{declaration}
define void @{WAIT}(ptr %counter, ptr %yield, ptr %unused, ptr %none, i64 %arrivals, i64 %spins) nounwind {{
  %before = atomicrmw add ptr %counter, i64 1 acq_rel
  br label %look
look:
  %n = phi i64 [ 0, %0 ], [ %following, %again ]
  %now = load atomic i64, ptr %counter acquire, align 8
  %all = icmp sge i64 %now, %arrivals
  br i1 %all, label %done, label %not_all
not_all:
  %following = add i64 %n, 1
  %early = icmp slt i64 %following, %spins
  br i1 %early, label %early_on, label %later
early_on:
  {pause}
  br label %again
later:
  %result = call i32 %yield()
  br label %again
again:
  br label %look
done:
  ret void
}}
"""


def _mark(target: Target) -> str:
    """Returns a step that writes the clock's ticks when it is reached: `void mark(place, -, -, -, -, -)`."""
    declaration, clock = _CLOCKS[target.machine]
    return f"""
target triple = "{target.triple}"
{declaration}
define void @{MARK}(ptr %place, ptr %p1, ptr %p2, ptr %p3, i64 %i1, i64 %i2) nounwind {{
  %now = {clock}
  store i64 %now, ptr %place
  ret void
}}
"""
