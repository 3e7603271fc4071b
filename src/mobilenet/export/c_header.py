"""The C header of an exported model: one function, sizes as constants, what the input must be, the labels."""

from .. import __version__
from ..compiler.memory import ALIGNMENT
from ..compiler.plan import Plan
from ..model import Model
from ..photos.preprocessing import Preprocessing


def header(model: Model, plan: Plan, symbol: str, made_for: str, beside: bool = False) -> str:
    """Returns the header; names begin with `symbol`, constants with that in capitals.

    With the weights beside the code, their address is an argument.
    """
    height, width, channels = model.network.input
    capitals = symbol.upper()
    outputs = output_floats(plan)
    weights, constants, argument = "", "", ""
    if beside:
        weights = f"""
   Weights: what the file beside this one has, anywhere in memory that can be read, aligned to {ALIGNMENT} bytes."""
        constants = f"""
#define {capitals}_WEIGHTS_BYTES {plan.weights}
#define {capitals}_WEIGHTS_ALIGNMENT {ALIGNMENT}"""
        argument = ", const void *weights"
    text = f"""\
/* {model.network}, {numbers(model)}, for {made_for}; made by mobilenet {__version__}.

   Input: {height} rows from the top, each of {width} pixels, each of {channels} bytes{colours(channels)}, 0 to 255.
   From a photo: {way(model.preprocessing)}. Scaling to the network's numbers is part of the function.
   Output: {outputs} floats, {meaning(model, plan)}.
   Scratch: memory for the run alone, of any content, aligned to {ALIGNMENT} bytes.{weights}
   The function allocates nothing, calls nothing, keeps nothing: it may run in several threads at once, each with
   scratch memory of its own. */
#ifndef {capitals}_H
#define {capitals}_H

#include <stdint.h>

#define {capitals}_HEIGHT {height}
#define {capitals}_WIDTH {width}
#define {capitals}_CHANNELS {channels}
#define {capitals}_INPUT_BYTES {height * width * channels}
#define {capitals}_OUTPUT_FLOATS {outputs}
#define {capitals}_SCRATCH_BYTES {plan.arena}
#define {capitals}_SCRATCH_ALIGNMENT {ALIGNMENT}{constants}

#ifdef __cplusplus
extern "C" {{
#endif

void {symbol}_run(const uint8_t *input, float *output, void *scratch{argument});

#ifdef __cplusplus
}}
#endif
"""
    if model.labels:
        labels = ",\n".join(f"    {quoted(label)}" for label in model.labels)
        text += f"""
/* One for each output, UTF-8: for the file that defines {capitals}_LABELS before it includes this one. */
#ifdef {capitals}_LABELS
static const char *const {symbol}_labels[{capitals}_OUTPUT_FLOATS] = {{
{labels}
}};
#endif
"""
    return text + "\n#endif\n"


def output_floats(plan: Plan) -> int:
    """Returns the floats of the output."""
    return plan.stored.height * plan.stored.width * plan.network.layers[-1].output.channels


def numbers(model: Model) -> str:
    """Returns what the network computes with."""
    return {"f32": "float32"}.get(model.precision, model.precision)


def meaning(model: Model, plan: Plan) -> str:
    """Returns what the output is."""
    if plan.probabilities:
        return "the probability of each class"
    if model.network.include_top:
        return "the logit of each class: exp(x) over the sum of all exp(x) is its probability"
    shape = " x ".join(map(str, model.network.output))
    return f"features, {'channels' if model.network.pooling else shape + ', channels last'}"


def colours(channels: int) -> str:
    """Returns what the bytes of a pixel are, as a remark."""
    return {1: " (grey)", 3: " (red, green, blue)"}.get(channels, "")


def way(preprocessing: Preprocessing) -> str:
    """Returns the way from a photo to the input in words."""
    area = "all of it" if preprocessing.resize == "squash" else "the largest central area with the input's aspect"
    crop = "" if preprocessing.crop == 1 else f", of its sides the central {100 * preprocessing.crop:g}%"
    return f"{area}{crop}, resized ({preprocessing.interpolation}, with antialiasing)"


def quoted(text: str) -> str:
    """Returns a C string literal of the text in UTF-8; whatever could end it or mean something is in octal."""
    return '"' + "".join(map(_character, text.encode())) + '"'


def _character(byte: int) -> str:
    plain = 32 <= byte < 127 and chr(byte) not in '"\\?'  # ??/ would be a trigraph
    return chr(byte) if plain else f"\\{byte:03o}"
