"""Where TensorBoard meets us. It imports this module at every start, for everybody, whatever they came to look at.

So nothing here may fail or take long: an error here would keep TensorBoard from starting. Everything else of ours is
imported when the tab is made, and TensorBoard goes on without the tab if that fails.
"""

from __future__ import annotations

import logging
from argparse import Namespace

from tensorboard.plugins import base_plugin

_logger = logging.getLogger(__name__)


class GradWatchLoader(base_plugin.TBLoader):  # type: ignore[misc]
    """Makes the Gradients tab.

    Example:
        >>> flags = Namespace(samples_per_plugin={"images": 7})
        >>> GradWatchLoader().fix_flags(flags)
        >>> flags.samples_per_plugin
        {'gradwatch': 4096, 'images': 7}
    """

    def fix_flags(self, flags: Namespace) -> None:
        """Ask for all records: by default TensorBoard keeps a random choice of 10 or 100 of a tag.

        Args:
            flags: TensorBoard's; a number that the person has given for us holds.
        """
        try:
            from lightning_gradwatch.viewer.metadata import PLUGIN_NAME, SAMPLES  # noqa: PLC0415

            flags.samples_per_plugin = {PLUGIN_NAME: SAMPLES, **(flags.samples_per_plugin or {})}
        except Exception:
            _logger.warning("GradWatch cannot ask for all of its records: the picture has gaps", exc_info=True)

    def load(self, context: base_plugin.TBContext) -> base_plugin.TBPlugin | None:
        """Make the plugin.

        Args:
            context: What TensorBoard gives its plugins.

        Returns:
            The plugin, None where it cannot be made.
        """
        try:
            from lightning_gradwatch.viewer.plugin import GradWatchPlugin  # noqa: PLC0415

            return GradWatchPlugin(context)
        except Exception:
            _logger.warning("GradWatch's tab is missing, everything else works", exc_info=True)
            return None
