"""What would steer a terminal, made visible: a layer may be called anything, and an error may say anything."""

from __future__ import annotations

import logging


def visible(text: str, kept: str = "") -> str:
    r"""Return text with each letter that cannot be printed written as ``repr`` writes it.

    Args:
        text: The text.
        kept: Letters that stay as they are all the same, such as the line breaks of a block.

    Example:
        >>> print(visible("red\x1b[31m\nand on"))
        red\x1b[31m\nand on
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in kept else repr(letter)[1:-1] for letter in text)


class VisibleLetters(logging.Filter):
    """Lets every record through, its message made visible but for line breaks, which our own blocks have."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the message where that is needed."""
        message = record.getMessage()
        shown = visible(message, kept="\n")
        if shown != message:
            record.msg, record.args = shown, ()
        return True
