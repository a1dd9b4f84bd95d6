"""A real training with JAX: ``jax_job.py BAD_STEP``. Prints what JAX itself says of each step."""

from __future__ import annotations

import json
import sys

import jax
import jax.numpy as jnp

import nantucket
import nantucket.jax


def loss_of(params, given):
    """A small network."""
    hidden = jnp.tanh(given @ params["layers"][0]["w"] + params["layers"][0]["b"])
    return jnp.mean((hidden @ params["out"]) ** 2)


@jax.jit
def train_step(params, given, spoil):
    """One step; ``spoil`` makes some of one gradient bad."""
    loss, grads = jax.value_and_grad(loss_of)(params, given)
    weight = grads["layers"][0]["w"]
    grads["layers"][0]["w"] = weight.at[0, :3].set(jnp.where(spoil, jnp.nan, weight[0, :3]))
    stats = nantucket.jax.gradients(grads)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), loss, stats, grads


def main() -> None:
    """Train."""
    bad_step = int(sys.argv[1])
    key = jax.random.key(6)
    params = {
        "layers": [{"w": jax.random.normal(key, (8, 16)), "b": jnp.zeros(16)}],
        "out": jax.random.normal(key, (16, 1)),
    }
    with nantucket.init("jax", attempt="a") as run:
        for step in range(10):
            given = jax.random.normal(jax.random.fold_in(key, step), (32, 8))
            params, loss, stats, grads = train_step(params, given, step == bad_step)
            nantucket.jax.log(run, step, stats, loss=loss, lr=0.1, scope="shard", accuracy=jnp.float32(0.5))
            norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
            print(json.dumps({"step": step, "loss": repr(float(loss)), "norm": repr(float(norm))}))
    print(json.dumps({"dropped": run.dropped}))


if __name__ == "__main__":
    main()
