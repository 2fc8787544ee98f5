"""Test ``lightning_gradwatch.report.start``."""

from __future__ import annotations

from lightning_gradwatch.measure.left_out import HiddenModules, LeftOut
from lightning_gradwatch.report.start import left_out_lines


def test_nothing_left_out_is_no_line():
    """Where all is held, nothing is said."""
    assert left_out_lines(LeftOut()) == []


def test_layers_are_named_and_counted_in_a_statement():
    """One line names the first layers and counts the numbers; it neither shouts nor asks."""
    (one,) = left_out_lines(LeftOut(("aux",), 1))
    assert one == "GradWatch  no optimizer holds aux (1 parameter): it stays as it is until one does"
    (many,) = left_out_lines(LeftOut(("a", "b", "c", "d", "e"), 12345))
    assert "holds a, b, c and 2 more (12,345 parameters): they stay as they are" in many


def test_an_optimizer_of_another_model_is_asked_about():
    """Where nothing of the model is held, no single layer is to blame."""
    (line,) = left_out_lines(LeftOut(("a", "b"), 20, everything=True))
    assert line.endswith("hold no parameter of this model (20 parameters): was it made anew after them?")


def test_hidden_modules_are_named_by_their_attribute_with_the_class_that_registers_them():
    """A list gets ModuleList, a dict ModuleDict, and the sentence agrees in number."""
    several = HiddenModules("Net", "blocks", "list", 3, 1218)
    single = HiddenModules("Net", "heads", "defaultdict", 1, 6)
    first, second = left_out_lines(LeftOut(hidden=(several, single)))
    assert first == (
        "GradWatch  self.blocks of Net is a plain list with 3 modules (1,218 parameters): they are not registered, so "
        "no optimizer trains them and .to(device) does not move them; nn.ModuleList registers them"
    )
    assert second == (
        "GradWatch  self.heads of Net is a plain defaultdict with 1 module (6 parameters): it is not registered, so "
        "no optimizer trains it and .to(device) does not move it; nn.ModuleDict registers it"
    )


def test_many_containers_are_counted():
    """More than three lines of the same kind would hide the rest of the log."""
    lines = left_out_lines(LeftOut(hidden=tuple(HiddenModules("Net", f"a{n}", "list", 2, 6) for n in range(5))))
    assert len(lines) == 4
    assert lines[-1] == "GradWatch  2 more containers of hidden modules"
