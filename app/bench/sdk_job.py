"""What the SDK costs a training process, measured in one: ``sdk_job.py FRAMEWORK SECONDS``. One JSON line.

It runs where the framework is, which need not be where the server is: standard library, the SDK, and that framework.
"""

import json
import os
import resource
import sys
import time
from typing import Any

import nantucket

LOG_CALLS = 3_000
LOG_PAUSE_SECONDS = 0.002
BLOCK_STEPS = 4
"""Steps with the watch and without in turn, so that a machine that slows down slows both."""
WARM_UP_STEPS = 6


def quantile(values: list[float], share: float) -> float:
    """The value below which ``share`` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def log_costs(run: Any) -> dict[str, float]:
    """Microseconds of ``run.log`` with ten values, as a loop calls it."""
    values = {f"metric_{at}": float(at) for at in range(6)}
    took = []
    for step in range(LOG_CALLS):
        begin = time.perf_counter()
        run.log(step=step, loss=2.0, grad_norm=1.0, lr=1e-3, tokens=4096, **values)
        took.append((time.perf_counter() - begin) * 1e6)
        time.sleep(LOG_PAUSE_SECONDS)
    return {"log_p50_us": round(quantile(took, 0.5), 1), "log_p99_us": round(quantile(took, 0.99), 1)}


def torch_costs(run: Any, seconds: float) -> dict[str, Any]:
    """A small language model, with ``run.watch`` and without in turn."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True, norm_first=True)
    model = nn.Sequential(nn.Embedding(1024, 256), nn.TransformerEncoder(layer, 4, enable_nested_tensor=False))
    model = nn.Sequential(*model, nn.Linear(256, 1024)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    words = torch.randint(0, 1024, (8, 129), device=device)
    number = 10 * LOG_CALLS

    def one_step(watched: bool) -> float:
        nonlocal number
        number += 1
        begin = time.perf_counter()
        out = model(words[:, :-1])
        loss = nn.functional.cross_entropy(out.flatten(0, 1), words[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if watched:
            run.log(step=number, loss=loss)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    for _ in range(WARM_UP_STEPS):
        one_step(False)
    syncs = _device_syncs(torch, run, model, optimizer, one_step) if device == "cuda" else None
    plain: list[float] = []
    watched: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        plain += [one_step(False) for _ in range(BLOCK_STEPS)]
        watch = run.watch(model, optimizer, first_step=number + 1)
        watched += [one_step(True) for _ in range(BLOCK_STEPS)]
        watch.close()
    middle, with_watch = quantile(plain, 0.5), quantile(watched, 0.5)
    elements = sum(each.numel() for each in model.parameters())
    return {
        "device": device,
        "step_ms": round(middle * 1e3, 2),
        "watched_step_ms": round(with_watch * 1e3, 2),
        "overhead_percent": round((with_watch / middle - 1) * 100, 2),
        "steps": len(plain) + len(watched),
        "elements": elements,
        "device_syncs": syncs,
    }


def _device_syncs(torch: Any, run: Any, model: Any, optimizer: Any, one_step: Any) -> int:
    """How often a watched step waits for the GPU more than a plain one does, as PyTorch itself counts it."""
    import warnings

    counts = []
    for watched in (False, True):
        watch = run.watch(model, optimizer) if watched else None
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            one_step(watched)
        torch.cuda.set_sync_debug_mode("default")
        if watch is not None:
            watch.close()
        counts.append(len(said))
    return counts[1] - counts[0]


def main() -> None:
    """Measure and print."""
    framework, seconds = sys.argv[1], float(sys.argv[2])
    run = nantucket.init("bench-sdk", attempt=str(os.getpid()))
    found: dict[str, Any] = log_costs(run)
    if framework == "torch":
        found.update(torch_costs(run, seconds))
    begin = time.process_time()
    time.sleep(3.0)
    found["idle_percent"] = round((time.process_time() - begin) / 3.0 * 100, 2)
    run.finish()
    found["dropped"] = run.dropped
    used = resource.getrusage(resource.RUSAGE_SELF)
    found["cpu_seconds"] = round(used.ru_utime + used.ru_stime, 3)
    found["peak_rss_mib"] = round(used.ru_maxrss / 1024, 1)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
