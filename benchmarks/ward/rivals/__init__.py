"""Published rules, each as its source has it, on the very gradients, outputs and losses that GradWatch sees.

Where a source leaves something open it is read in the rule's favor: a symptom that has several words is called by the
one that suits, weights are judged and biases are not, and each rule looks as often as suits it best.
"""

from __future__ import annotations

from benchmarks.ward.rivals.callback import Rivals as Rivals
from benchmarks.ward.rivals.look import Flag as Flag
