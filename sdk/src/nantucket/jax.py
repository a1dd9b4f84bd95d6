"""For JAX, and what is built on it (Flax, Optax, Equinox)::

    import nantucket.jax

    @jax.jit
    def train_step(state, batch):
        loss, grads = jax.value_and_grad(loss_of)(state, batch)
        return update(state, grads), loss, nantucket.jax.gradients(grads)

    for step in range(steps):
        state, loss, stats = train_step(state, next(batches))
        nantucket.jax.log(run, step, stats, loss=loss)

Nothing waits for the device: numbers are copied to the host behind the work that makes them, and sent when they are
there.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from nantucket import _clock
from nantucket._run import Run
from nantucket._values import Rows, plain, rows_of


@jax.tree_util.register_pytree_node_class
class Gradients:
    """What :func:`gradients` measures: a few arrays, and the leaves' names. It passes through ``jit`` and ``scan``."""

    def __init__(self, names: tuple[str, ...], elements: int, norm: Any, bad: Any) -> None:
        self.names, self.elements, self.norm, self.bad = names, elements, norm, bad

    def tree_flatten(self) -> tuple[tuple[Any, Any], tuple[tuple[str, ...], int]]:
        """The arrays, and what is not one."""
        return (self.norm, self.bad), (self.names, self.elements)

    @classmethod
    def tree_unflatten(cls, rest: tuple[tuple[str, ...], int], arrays: tuple[Any, Any]) -> Gradients:
        """The other way round."""
        return cls(*rest, *arrays)


def gradients(grads: Any) -> Gradients:
    """The 2-norm of a pytree of gradients, in float32, and the elements of each leaf that are not finite."""
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    names = tuple(_name(path) for path, _ in leaves)
    squares = [jnp.sum(jnp.square(jnp.abs(leaf).astype(jnp.float32))) for _, leaf in leaves]
    bad = [jnp.sum(~jnp.isfinite(leaf), dtype=jnp.int32) for _, leaf in leaves]
    elements = sum(leaf.size for _, leaf in leaves)
    return Gradients(names, elements, jnp.sqrt(sum(squares, jnp.float32(0.0))), jnp.stack(bad))


def _name(path: tuple[Any, ...]) -> str:
    """``layers.0.w``: what leads to a leaf, whatever holds it."""
    parts = [
        next((getattr(part, kind) for kind in ("key", "name", "idx") if hasattr(part, kind)), part) for part in path
    ]
    return ".".join(str(part) for part in parts) or "gradient"


def log(run: Run, step: int, stats: Gradients | None = None, *, scope: str | None = None, **values: object) -> None:
    """``run.log`` without waiting: ``values`` may be JAX's scalars. It never raises.

    ``first_nonfinite`` is the first in the order of the pytree, for JAX tells no other. ``scope`` says whose gradients
    these are: ``"shard"`` before a reduction (``psum``, ``pmean``), ``"global"`` behind it; absent, nobody is accused.
    """
    run._hand_over(_Call(_clock.now(), step, stats, scope, values))


class _Call:
    """A call whose numbers are on their way to the host."""

    def __init__(
        self, now: float, step: int, stats: Gradients | None, scope: str | None, values: dict[str, object]
    ) -> None:
        self._now, self._step, self._stats, self._scope, self._values = now, step, stats, scope, values
        arrays = [value for value in values.values() if isinstance(value, jax.Array)]
        self._arrays = arrays if stats is None else [*arrays, stats.norm, stats.bad]
        for array in self._arrays:
            array.copy_to_host_async()

    @property
    def ready(self) -> bool:
        """Whether the device is done with them. It does not wait."""
        return all(array.is_ready() for array in self._arrays)

    def rows(self) -> Rows:
        """What the call comes to."""
        values = {name: plain(value) for name, value in self._values.items()}
        stats = self._stats
        if stats is not None:
            bad = [int(count) for count in stats.bad.tolist()]
            first = next((name for name, count in zip(stats.names, bad) if count), None)
            values.update(grad_norm=float(stats.norm), nonfinite=sum(bad), first_nonfinite=first, scope=self._scope)
            values.update(watched_elements=stats.elements, total_elements=stats.elements)
        return rows_of(self._now, self._step, values)
