"""The loader of an exported WebAssembly module: an ES module for browsers, workers, Node, Deno and Bun."""

import json
from dataclasses import dataclass

from .. import __version__
from ..compiler.memory import ALIGNMENT
from ..compiler.plan import Plan
from ..model import Model
from .c_header import colours, meaning, numbers, output_floats, way


@dataclass(frozen=True)
class Layout:
    """Is where in the module's memory everything is, in bytes; the weights are at 0."""

    input: int
    output: int
    scratch: int
    size: int


def layout(plan: Plan) -> Layout:
    """Returns the layout of a plan's memory."""
    height, width, channels = plan.network.input
    pixels = _whole(plan.weights)
    output = _whole(pixels + height * width * channels)
    scratch = _whole(output + 4 * output_floats(plan))
    return Layout(pixels, output, scratch, scratch + plan.arena)


def _whole(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def loader(model: Model, plan: Plan, file: str, weights: str | None = None) -> str:
    """Returns the source of the ES module that loads `file`, which lies beside it, and `weights` if they do too."""
    height, width, channels = model.network.input
    places = layout(plan)
    arguments, remark, fetch, pointer = f"source = {_beside(file)}", "", "", ""
    if weights:
        arguments += f", weights = {_beside(weights)}"
        remark = " `weights`: the same for the weights."
        pointer = ", 0"
        fetch = f"""
  const packed = await bytes(weights);
  if (packed.byteLength !== {plan.weights}) {{
    throw new RangeError(`weights: got ${{packed.byteLength}} bytes, needed {plan.weights}`);
  }}
  new Uint8Array(memory.buffer).set(ArrayBuffer.isView(packed) ? packed : new Uint8Array(packed));"""
    return f"""\
// {model.network}, {numbers(model)}, for WebAssembly with 128-bit SIMD; made by mobilenet {__version__}.
//
//   const network = await load();
//   const output = network.run(pixels);
//
// Pixels: Uint8Array of {height} rows from the top, each of {width} pixels, each of {channels} values{colours(channels)}, 0 to 255.
// From a photo: {way(model.preprocessing)}. Scaling to the network's numbers is part of it.
// Output: Float32Array of {output_floats(plan)}: {meaning(model, plan)}.

export const height = {height}, width = {width}, channels = {channels};
export const labels = {json.dumps(list(model.labels))};

const INPUT = {places.input}, OUTPUT = {places.output}, SCRATCH = {places.scratch};

/** Loads the network. `source`: where the module is, or its bytes; by default {file} beside this file.{remark} */
export async function load({arguments}) {{
  const {{ instance }} = await WebAssembly.instantiate(await bytes(source));
  const {{ memory, run }} = instance.exports;{fetch}
  const input = new Uint8Array(memory.buffer, INPUT, height * width * channels);
  const output = new Float32Array(memory.buffer, OUTPUT, {output_floats(plan)});
  return {{
    run(pixels) {{
      if (pixels.length !== input.length) {{
        throw new RangeError(`pixels: got ${{pixels.length}} values, needed ${{input.length}}`);
      }}
      input.set(pixels);
      run(INPUT, OUTPUT, SCRATCH{pointer});
      return output.slice();
    }},
  }};
}}

async function bytes(source) {{
  if (source instanceof ArrayBuffer || ArrayBuffer.isView(source)) return source;
  if (source instanceof URL && source.protocol === "file:" && !globalThis.window) {{
    return (await import("node:fs/promises")).readFile(source);
  }}
  const response = await fetch(source);
  if (!response.ok) throw new Error(`${{source}}: ${{response.status}} ${{response.statusText}}`);
  return response.arrayBuffer();
}}
"""  # noqa: E501


def _beside(file: str) -> str:
    return f"new URL({json.dumps(file)}, import.meta.url)"
