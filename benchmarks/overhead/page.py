"""The tables of what watching costs, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.overhead.abba import Seconds
from benchmarks.overhead.growth import Size
from benchmarks.overhead.memory import Held
from benchmarks.overhead.parts import LAYERS as LAYERS_OF_PARTS
from benchmarks.overhead.processes import LAYERS, STEPS, Sent
from benchmarks.overhead.variants import VARIANTS
from benchmarks.overhead.works import WORKS

Times = Mapping[str, Seconds]

_INTRODUCTION = """# What it costs

Made with `{command}` on {machine}. One process, {threads} thread(s), every variant in turn forwards and backwards
(A B ... B A), medians of the processor's time; the null control is the same thing measured twice, and shows what
differences mean nothing. Ratios carry over to other machines, milliseconds do not.
"""
_BARE = """
## A step beside the floor

The gradients are there; nothing but reading them is timed. The floor is `torch.nn.utils.get_total_norm`, one read of
every gradient. GradWatch measures every layer, brings the numbers to the host, remembers them and asks every rule.

| model | floor | again | GradWatch | times the floor | asked | `clip_grad_norm_` | GradWatch that clips | times it |
|---|---|---|---|---|---|---|---|---|
"""
_FITS = """
## A step of the Trainer

Whole steps, forward and backward pass and all of Lightning included. What happens in one of 50 steps by default (a
probe, values to the logger) is measured in every step, and a fiftieth of what it adds is given. What does something
for each parameter takes seconds a step where there are thousands of layers, and was not run there. The last row is the
null control: what differs by no more than it means nothing.

| variant | {names} |
|---|{rule}|
"""
_LAYERS = """
## By the number of layers

| layers (width 4) | floor | GradWatch | times the floor | a layer |
|---|---|---|---|---|
"""
_PARAMETERS = """
## By the number of parameters

| parameters (20 layers) | floor | GradWatch | times the floor |
|---|---|---|---|
"""
_PARTS = f"""
GradWatch reads what the floor reads, in one fused call as well; tensors of more than 65,536 numbers in rows, since
one float32 sum over all of them loses digits, which costs 3 to 8% of the floor. The rest is Python, about the same
for every model, so that it weighs most where the floor is smallest: with a floor of 3 ms, 15% of it are fewer
microseconds than the Python around one reading takes. Here it is alone: {LAYERS_OF_PARTS} layers of width 4, whose
gradients cost nothing. On CUDA none of it waits for the device, as tests count in which a CPU plays the part.

| part of a step | microseconds |
|---|---|
"""
_PROCESSES = f"""
## What processes send each other

Counted, not timed: what one process sends in {STEPS} steps of {LAYERS} layers ({2 * LAYERS} parameter tensors)
because of GradWatch. Sharded gradients are measured by all processes together, in one message a reading; the losses
of 20 steps, and whether anything failed, are exchanged in one. Norms are float32 on a CPU, and float64 on CUDA:
twice the bytes.

| strategy | processes | collectives in {STEPS} steps | bytes |
|---|---|---|---|
"""
_HELD = """
## What is remembered

Runs that no benchmark could train, fed to the history (bound: 64 MiB) and to one
series of the picture (bound: 32 MiB).

| layers | readings | rows of the history | its bytes, at most | columns of a series | its bytes, at most |
|---|---|---|---|---|---|
"""


def page(
    command: str,
    machine: str,
    threads: int,
    bare: Mapping[str, Times],
    parts: Mapping[str, float],
    fits: Mapping[str, Times],
    layers: Sequence[Size],
    parameters: Sequence[Size],
    processes: Sequence[Sent],
    held: Sequence[Held],
) -> str:
    """Write the page.

    Args:
        command: What it was made with.
        machine: In words.
        threads: Of torch.
        bare: Times of a step without passes, by model.
        parts: Microseconds of the parts of such a step where gradients cost nothing.
        fits: Times of a step of the Trainer, by model.
        layers: Growth by layers.
        parameters: Growth by parameters.
        processes: What processes send each other.
        held: What is remembered.
    """
    text = [_INTRODUCTION.format(command=command, machine=machine, threads=threads)]
    if bare:
        text += [_BARE, *(_bare_row(work.name, work.most, bare[work.name]) for work in WORKS if work.name in bare)]
    if parts:
        text += [_PARTS, *(_row([name, f"{microseconds:.0f}"]) for name, microseconds in parts.items())]
    if fits:
        text += [_FITS.format(names=" | ".join(fits), rule="---|" * (len(fits) - 1) + "---")]
        text += [_fit_row(variant.name, variant.rare, fits) for variant in VARIANTS]
    if layers:
        text += [_LAYERS, *map(_layer_row, layers)]
    if parameters:
        text += [_PARAMETERS, *map(_parameter_row, parameters)]
    if processes:
        text += [_PROCESSES, *map(_process_row, processes)]
    if held:
        text += [_HELD, *map(_held_row, held)]
    return "".join(text)


def _bare_row(name: str, most: float, times: Times) -> str:
    floor, ours, clip = (times[each].process for each in ("floor", "GradWatch", "clip_grad_norm_"))
    again, clips = times["floor again"].process, times["GradWatch with ClipByGlobalNorm"].process
    cells = [name, _ms(floor), f"{again / floor:.2f}x", _ms(ours), f"**{ours / floor:.2f}**", f"{most:g}"]
    return _row([*cells, _ms(clip), _ms(clips), f"**{clips / clip:.2f}**"])


def _fit_row(name: str, rare: int, fits: Mapping[str, Times]) -> str:
    cells = []
    for times in fits.values():
        if name not in times:
            cells.append("seconds")
            continue
        nothing, step = times["nothing"].process, times[name].process
        cells.append(_ms(nothing) if name == "nothing" else f"{(step - nothing) / rare / nothing:+.2%}")
    return _row([name, *cells])


def _layer_row(size: Size) -> str:
    floor, ours = size.seconds["floor"].process, size.seconds["GradWatch"].process
    return _row(
        [f"{size.layers:,}", _ms(floor), _ms(ours), f"{ours / floor:.2f}", f"{ours / size.layers * 1e6:.1f} us"]
    )


def _parameter_row(size: Size) -> str:
    floor, ours = size.seconds["floor"].process, size.seconds["GradWatch"].process
    return _row([f"{size.parameters:.0e}", _ms(floor), _ms(ours), f"{ours / floor:.2f}"])


def _process_row(sent: Sent) -> str:
    messages = ", ".join(f"{count} {name}" for name, count in sorted(sent.messages.items())) or "nothing"
    return _row([sent.strategy, str(sent.processes), messages, f"{sent.bytes:,}"])


def _held_row(held: Held) -> str:
    sizes = [f"{held.layers:,}", f"{held.readings:,}", f"{held.rows:,}", f"{held.history / 2**20:.1f} MiB"]
    return _row([*sizes, f"{held.columns:,}", f"{held.picture / 2**20:.1f} MiB"])


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |\n"
