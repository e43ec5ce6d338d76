"""Sessions under `torch.compile`: the same noise, in a graph without breaks.

The hook on the whole model runs outside the graph. It reads the rows as always and puts a mode on
the stack, whose class the compiler guards on: code compiled outside a session, or in one of another
shape, does not match. Hooks and mode are then traced once, and leave operators of our own in the
graph, which look everything up when they run. Imported when a compiled model first runs in a
session.
"""

from noisescope.inject.compiled.mode import begin, end
from noisescope.inject.compiled.ops import forget_passes
from noisescope.inject.compiled.trace import after, before, stay_outside

__all__ = ["after", "before", "begin", "end", "forget_passes", "stay_outside"]
