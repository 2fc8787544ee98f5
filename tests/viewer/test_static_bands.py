"""Test ``lightning_gradwatch/viewer/static/bands.js``: which rows share a line of pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from viewer.hosts import Stand

PARTS = ("norm1", "query", "key", "value", "out", "norm2", "linear1", "linear2")
BLOCKS = [f"encoder.{block}.{part}" for block in range(250) for part in PARTS]

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def ask(browser: Any) -> Iterator[Ask]:
    """Return a function that evaluates an expression over the modules with a value that is given."""
    with Stand([]) as stand:
        page = browser.new_page()
        page.goto(f"{stand.url}data/plugin/gradwatch/static/style.css")
        names = ["bands", "rows", "view"]
        page.evaluate(f"async () => {{ for (const name of {names}) window[name] = await import(`./${{name}}.js`); }}")
        yield lambda expression, given=None: page.evaluate(f"(given) => {expression}", given)
        page.close()


@pytest.mark.parametrize(
    ("layers", "size", "first"),
    [
        (BLOCKS, 8, 0),
        (["embed", *BLOCKS, "norm", "head"], 8, 1),
        (["a", "b", "c"], 1, 0),
        ([], 1, 0),
        ([f"net.{number}" for number in range(40)], 1, 0),
    ],
)
def test_the_length_of_a_block_is_the_one_that_most_rows_are_in(
    ask: Ask, layers: list[str], size: int, first: int
) -> None:
    """Blocks of eight layers are found also where other layers stand before and behind them."""
    found = ask("bands.blockPeriod(rows.layerRows(given))", layers)
    assert found["size"] == size
    assert found["first"] == first


@pytest.mark.parametrize(
    ("shown", "lines", "period", "expected"),
    [(2000, 2000, 8, 1), (100, 500, 8, 1), (2000, 1999, 8, 2), (2000, 483, 8, 8), (2000, 240, 8, 16), (999, 400, 1, 3)],
)
def test_lines_show_whole_blocks_or_even_parts_of_one(
    ask: Ask, shown: int, lines: int, period: int, expected: int
) -> None:
    """So many rows share a line as fit, rounded up until a block is a multiple of them, or they of it."""
    assert ask("bands.rowsPerLine(...given)", [shown, lines, period]) == expected


@pytest.mark.parametrize("lines", [3000, 1500, 483, 100])
def test_no_row_is_left_out_and_lines_begin_where_blocks_do(ask: Ask, lines: int) -> None:
    """Each row is in a line, and where rows share lines all blocks look alike."""
    layers = ["embed", *BLOCKS, "head"]
    told = ask(
        "{ const range = new view.AxisRange(4); range.setLimits(0, given[0].length); range.reset();"
        " const period = bands.blockPeriod(rows.layerRows(given[0]));"
        " const found = bands.bandsOf(given[0].length, period, range, given[1]);"
        " return [found.first, found.last].map((part) => [...part.subarray(0, found.count)]) }",
        [layers, lines],
    )
    firsts, lasts = told
    assert firsts[0] == 0
    assert lasts[-1] == len(layers) - 1
    # What is narrower than a line, at the ends, shares the line of its neighbor.
    assert all(begin <= end + 1 for begin, end in zip(firsts[1:], lasts[:-1], strict=True))
    assert len(firsts) <= lines
    inner = {last - first + 1 for first, last in zip(firsts[2:-2], lasts[2:-2], strict=True)}
    assert len(inner) == 1
    begins = {(first - 1) % 8 for first in firsts[2:-2]}
    assert begins == set(range(0, 8, min(inner.pop(), 8)))
