"""Report training steps to Nantucket.

::

    with nantucket.init(job="leviathan-7b", rank=0) as run:
        for step in range(steps):
            loss, grad_norm = train(step)
            run.log(step=step, loss=loss, grad_norm=grad_norm)
"""

from nantucket._connection import default_url
from nantucket._heed import Diverged
from nantucket._run import Run, init
from nantucket._verdict import Verdict
from nantucket._version import __version__

__all__ = ["Diverged", "Run", "Verdict", "__version__", "default_url", "init"]
