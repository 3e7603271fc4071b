"""What runs a plan, in LLVM's own language: the calls of a table one by one, and threads that share them.

A table has a row for each call: the kernel's address, its four pointers, its two whole numbers.
"""

import struct
from collections.abc import Mapping

from . import crew
from .crew import PAUSES
from .kernel import Kernel
from .lower import Plan
from .memory import ALIGNMENT
from .targets import Target

STEP_WORDS = 7
DRIVE, TOGETHER, MARK = "drive", "together", "mark"
_SPINS = 500  # of some 50 ns

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
        **crew.modules(target),
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
    declaration, pause = PAUSES[target.machine]
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
{crew.waiting("after", "%counter", "icmp ult i64 %now, %threads", "finished", _SPINS, pause)}
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


def program(
    plan: Plan, weights: bytes | None, symbol: str, names: Mapping[Kernel, str], last: tuple[float, float] = (1.0, 0.0)
) -> str:
    """Returns `void symbol(input, output, scratch)`, which makes a plan's calls for one thread, and the plan's weights.

    The input is uint8 pixels, the output the last layer's floats, without channels that are stored beyond them, and
    scratch `plan.arena` bytes of any content.

    Args:
        weights: None to have their address as a fourth argument instead.
        names: the kernels' functions, which are defined elsewhere.
        last: scale and zero point of the last layer's bytes, where it has them.
    """
    word = f"i{plan.target.bits}"
    regions = {"arena": "%scratch", "weights": f"@{symbol}_weights" if weights else "%weights", "pixels": "%input"}
    patterns = {fill.offset: fill.pattern for fill in plan.fills}
    lines = [line for begin, size in plan.zeroed for line in _filled(word, begin, size, patterns.get(begin, (0,)))]
    for number, step in enumerate(step for step in plan.parts[0] if step):
        places: list[str] = []
        for place in (step.out, step.source, step.parameters, step.extra):
            places.append(f"%p{number}.{len(places)}")
            lines.append(f"{places[-1]} = getelementptr i8, ptr {regions[place.region]}, {word} {place.offset}")
        pointers = ", ".join(f"ptr {place}" for place in places)
        lines.append(f"call void @{names[step.kernel]}({pointers}, {word} {step.begin}, {word} {step.end})")
    lines += _copy(word, plan, last)
    body = "\n  ".join(lines)
    kernels = "\n".join(f"declare void @{name}(ptr, ptr, ptr, ptr, {word}, {word})" for name in names.values())
    parameter, constant = f", ptr noalias align {ALIGNMENT} %weights", ""
    if weights:
        kind, parameter = f"[{len(weights)} x i8]", ""
        constant = f'@{symbol}_weights = internal constant {kind} c"\\{weights.hex(chr(92))}", align {ALIGNMENT}'
    return f"""
target triple = "{plan.target.triple}"
{constant}
{kernels}
define void @{symbol}(ptr noalias %input, ptr noalias %output, ptr noalias align {ALIGNMENT} %scratch{parameter})
    nounwind "no-builtins" {{
entry:
  {body}
  ret void
}}
"""


def _filled(word: str, begin: int, size: int, pattern: tuple[int, ...]) -> list[str]:
    """Returns the code that writes a pattern again and again to the cache lines from a place in scratch memory on."""
    pattern = pattern[:1] if len(set(pattern)) == 1 else pattern
    repeated = bytes(pattern) * ALIGNMENT  # as many lines as the pattern has bytes
    lines = [repeated[n : n + ALIGNMENT] for n in range(0, len(repeated), ALIGNMENT)]
    rounds, rest = divmod(-(-size // ALIGNMENT), len(lines))

    def stores(base: str, count: int) -> list[str]:
        return [part for n in range(count) for part in _line(word, f"{base}.{n}", base, n * ALIGNMENT, lines[n])]

    name = f"fill{begin}"
    after = begin + rounds * len(repeated)
    return [
        *_at(word, f"%{name}.all", "%scratch", begin),
        *(
            _loop(
                word,
                name,
                rounds,
                f"%{name}.at = getelementptr [{len(repeated)} x i8], ptr %{name}.all, {word} %{name}.i",
                *stores(f"%{name}.at", len(lines)),
            )
            if rounds
            else ()
        ),
        *_at(word, f"%{name}.rest", "%scratch", after),
        *stores(f"%{name}.rest", rest),
    ]


def _at(word: str, name: str, base: str, offset: int) -> list[str]:
    return [f"{name} = getelementptr i8, ptr {base}, {word} {offset}"]


def _line(word: str, name: str, base: str, offset: int, content: bytes) -> list[str]:
    words = (int.from_bytes(content[n : n + 4], "little") for n in range(0, ALIGNMENT, 4))
    values = ", ".join(f"i32 {value}" for value in words)
    return [
        *_at(word, name, base, offset),
        f"store <{ALIGNMENT // 4} x i32> <{values}>, ptr {name}, align {ALIGNMENT}",
    ]


def _copy(word: str, plan: Plan, last: tuple[float, float]) -> list[str]:
    """Returns the code that writes the last layer's channels, each pixel's behind the one's before, to the output."""
    height, width, stored = plan.stored
    channels = plan.network.layers[-1].output.channels
    kind = {"f32": "float", "u8": "i8"}[plan.numbers]
    value = ["%value = load float, ptr %from.c"]
    if kind == "i8":
        scale, zero = (f"0x{struct.pack('>d', number).hex()}" for number in last)
        value = [
            "%byte = load i8, ptr %from.c",
            "%whole = uitofp i8 %byte to float",
            f"%centred = fsub float %whole, {zero}",
            f"%value = fmul float %centred, {scale}",
        ]
    return [
        *_at(word, "%result", "%scratch", plan.result),
        *_loop(
            word,
            "pixel",
            height * width,
            f"%from = getelementptr [{stored} x {kind}], ptr %result, {word} %pixel.i",
            f"%to = getelementptr [{channels} x float], ptr %output, {word} %pixel.i",
            *_loop(
                word,
                "channel",
                channels,
                f"%from.c = getelementptr {kind}, ptr %from, {word} %channel.i",
                f"%to.c = getelementptr float, ptr %to, {word} %channel.i",
                *value,
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
