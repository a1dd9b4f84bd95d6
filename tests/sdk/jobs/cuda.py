"""Steps on a GPU with everything watched, in which PyTorch says each wait for the device. Prints them."""

from __future__ import annotations

import json
import warnings

import torch

import nantucket


def main() -> None:
    """Train some steps, of which the first may warm up."""
    if not torch.cuda.is_available():
        print(json.dumps({"device": None}))
        return
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 1)).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    given = torch.randn(32, 64, device="cuda")
    waits: list[str] = []
    with nantucket.init("cuda", attempt="a") as run:
        run.watch(model, optimizer, layers_every=1, update_every=1)
        for step in range(5):
            torch.cuda.set_sync_debug_mode("warn" if step else "default")
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                loss = model(given).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                run.log(step=step, loss=loss)
                run.checksum(step, model.parameters())
            torch.cuda.set_sync_debug_mode("default")
            waits += [str(each.message) for each in said]
    print(json.dumps({"device": torch.cuda.get_device_name(), "waits": waits}))


if __name__ == "__main__":
    main()
