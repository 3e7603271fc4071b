"""What runs a plan, in LLVM's own language: the calls of a table one by one, and threads that share them.

A table has a row for each call: the kernel's address, its four pointers, its two whole numbers.
"""

from collections.abc import Mapping

from .kernel import Kernel
from .lower import Plan
from .memory import ALIGNMENT
from .targets import Target

STEP_WORDS = 7
DRIVE, TOGETHER, MARK = "drive", "together", "mark"
_SPINS = 500  # of some 50 ns

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
    return {
        DRIVE: f'target triple = "{target.triple}"\n{_drive(DRIVE, "")}',
        TOGETHER: _together(target),
        MARK: _mark(target),
    }


def _drive(name: str, linkage: str) -> str:
    """Returns `void drive(steps, count)`, which makes the calls of a table, `STEP_WORDS` words each."""
    words = "\n".join(
        f"  %p{n} = getelementptr i64, ptr %step, i64 {n}\n  %w{n} = load {'ptr' if n < 5 else 'i64'}, ptr %p{n}"
        for n in range(STEP_WORDS)
    )
    return f"""
define {linkage} void @{name}(ptr %steps, i64 %count) nounwind {{
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


def _together(target: Target) -> str:
    """Returns `void together(job, me)`, by which threads do the stretches of a job, one after the other.

    A job is the numbers of stretches and of threads, the address of as many flags as there are parts (stretches by
    threads) and of as many counters as there are stretches, all 0 at first, that of the system's function `yield`, and
    for each part its table and that table's length. In each stretch a thread does its own part, then whatever part no
    other thread has begun: so nobody waits for a thread that is not there yet, only for one that has begun. It looks
    `_SPINS` times before it begins to offer its processor to whatever else wants to run: a stretch takes from 10 µs to
    1 ms, and a thread that slept would take 50 µs to wake.
    """
    declaration, pause = _PAUSES[target.machine]
    return f"""
target triple = "{target.triple}"
{declaration}
{_drive("steps", "internal")}
define void @{TOGETHER}(ptr %job, i64 %me) nounwind {{
  %stretches = load i64, ptr %job
  %threads.at = getelementptr i64, ptr %job, i64 1
  %threads = load i64, ptr %threads.at
  %flags.at = getelementptr i64, ptr %job, i64 2
  %flags = load ptr, ptr %flags.at
  %yield.at = getelementptr i64, ptr %job, i64 3
  %yield = load ptr, ptr %yield.at
  %parts = getelementptr i64, ptr %job, i64 4
  %all = mul i64 %stretches, %threads
  %counters = getelementptr i64, ptr %flags, i64 %all
  br label %stretch
stretch:
  %s = phi i64 [ 0, %0 ], [ %s.next, %finished ]
  %counter = getelementptr i64, ptr %counters, i64 %s
  %first = mul i64 %s, %threads
  br label %part
part:
  %n = phi i64 [ 0, %stretch ], [ %n.next, %after ]
  %turn = add i64 %me, %n
  %which = urem i64 %turn, %threads
  %index = add i64 %first, %which
  %flag = getelementptr i64, ptr %flags, i64 %index
  %taken = atomicrmw xchg ptr %flag, i64 1 acq_rel
  %free = icmp eq i64 %taken, 0
  br i1 %free, label %mine, label %after
mine:
  %entry = getelementptr [2 x i64], ptr %parts, i64 %index
  %table = load ptr, ptr %entry
  %count.at = getelementptr i64, ptr %entry, i64 1
  %count = load i64, ptr %count.at
  %some = icmp ne i64 %count, 0
  br i1 %some, label %work, label %arrive
work:
  call void @steps(ptr %table, i64 %count)
  br label %arrive
arrive:
  %before = atomicrmw add ptr %counter, i64 1 acq_rel
  br label %after
after:
  %n.next = add i64 %n, 1
  %more = icmp ult i64 %n.next, %threads
  br i1 %more, label %part, label %look
look:
  %looks = phi i64 [ 0, %after ], [ %looks.next, %again ]
  %now = load atomic i64, ptr %counter acquire, align 8
  %done = icmp uge i64 %now, %threads
  br i1 %done, label %finished, label %wait
wait:
  %looks.next = add i64 %looks, 1
  %early = icmp ult i64 %looks.next, {_SPINS}
  br i1 %early, label %pause, label %offer
pause:
  {pause}
  br label %again
offer:
  %result = call i32 %yield()
  br label %again
again:
  br label %look
finished:
  %s.next = add i64 %s, 1
  %follows = icmp ult i64 %s.next, %stretches
  br i1 %follows, label %stretch, label %end
end:
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


def program(plan: Plan, weights: bytes, symbol: str, names: Mapping[Kernel, str]) -> str:
    """Returns `void symbol(input, output, scratch)`, which makes a plan's calls for one thread, and the plan's weights.

    The input is uint8 pixels, the output the last layer's floats, without channels that are stored beyond them, and
    scratch `plan.arena` bytes of any content. `names` are the kernels' functions, which are defined elsewhere.
    """
    word = f"i{plan.target.bits}"
    regions = {"arena": "%scratch", "weights": f"@{symbol}_weights", "pixels": "%input"}
    lines = [line for offset, size in plan.zeroed for line in _zeros(word, offset, -(-size // ALIGNMENT))]
    for number, step in enumerate(step for step in plan.parts[0] if step):
        places: list[str] = []
        for place in (step.out, step.source, step.parameters, step.extra):
            places.append(f"%p{number}.{len(places)}")
            lines.append(f"{places[-1]} = getelementptr i8, ptr {regions[place.region]}, {word} {place.offset}")
        pointers = ", ".join(f"ptr {place}" for place in places)
        lines.append(f"call void @{names[step.kernel]}({pointers}, {word} {step.begin}, {word} {step.end})")
    lines += _copy(word, plan)
    body = "\n  ".join(lines)
    kernels = "\n".join(f"declare void @{name}(ptr, ptr, ptr, ptr, {word}, {word})" for name in names.values())
    return f"""
target triple = "{plan.target.triple}"
@{symbol}_weights = internal constant [{len(weights)} x i8] c"\\{weights.hex(chr(92))}", align {ALIGNMENT}
{kernels}
define void @{symbol}(ptr noalias %input, ptr noalias %output, ptr noalias align {ALIGNMENT} %scratch)
    nounwind "no-builtins" {{
entry:
  {body}
  ret void
}}
"""


def _zeros(word: str, offset: int, lines: int) -> list[str]:
    """Returns the code that writes zeros to so many cache lines from an offset of the scratch memory on."""
    return [
        f"%z{offset} = getelementptr i8, ptr %scratch, {word} {offset}",
        *_loop(
            word,
            f"zero{offset}",
            lines,
            f"%a{offset} = getelementptr [{ALIGNMENT} x i8], ptr %z{offset}, {word} %zero{offset}.i",
            f"store <{ALIGNMENT // 4} x i32> zeroinitializer, ptr %a{offset}, align {ALIGNMENT}",
        ),
    ]


def _copy(word: str, plan: Plan) -> list[str]:
    """Returns the code that writes the last layer's channels, each pixel's behind the one's before, to the output."""
    height, width, stored = plan.stored
    channels = plan.network.layers[-1].output.channels
    return [
        f"%result = getelementptr i8, ptr %scratch, {word} {plan.result}",
        *_loop(
            word,
            "pixel",
            height * width,
            f"%from = getelementptr [{stored} x float], ptr %result, {word} %pixel.i",
            f"%to = getelementptr [{channels} x float], ptr %output, {word} %pixel.i",
            *_loop(
                word,
                "channel",
                channels,
                f"%from.c = getelementptr float, ptr %from, {word} %channel.i",
                f"%to.c = getelementptr float, ptr %to, {word} %channel.i",
                "%value = load float, ptr %from.c",
                "store float %value, ptr %to.c",
            ),
        ),
    ]


def _loop(word: str, name: str, count: int, *body: str) -> list[str]:
    """Returns a loop over %name.i from 0 to below `count`, which is at least 1."""
    i, following, more = (f"%{name}.{part}" for part in ("i", "next", "more"))
    return [
        f"br label %{name}.before",
        f"{name}.before:",
        f"br label %{name}",
        f"{name}:",
        f"{i} = phi {word} [ 0, %{name}.before ], [ {following}, %{name}.end ]",
        *body,
        f"br label %{name}.end",
        f"{name}.end:",
        f"{following} = add nuw nsw {word} {i}, 1",
        f"{more} = icmp ult {word} {following}, {count}",
        f"br i1 {more}, label %{name}, label %{name}.after",
        f"{name}.after:",
    ]
