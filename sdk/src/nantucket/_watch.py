"""``run.watch``: hooks on a PyTorch model that measure its gradients, its optimizer and its loss scaler.

The order of one step: each parameter's gradient is noted as backward produces it; behind the backward pass, before
anything is clipped or reduced where that can be, the gradients are measured (:mod:`nantucket._gradients`); the
optimizer's step, or the scaler's update, closes the step; ``run.log`` of that step takes the numbers along, and where
nobody logs it they go by themselves. On a GPU nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

from nantucket import _clock
from nantucket._gradients import gradient_of, local, measure, update_norm
from nantucket._readback import Readback
from nantucket._reduction import Wait, hook_reduction
from nantucket._say import Voice
from nantucket._watched_step import Parameters, WatchedStep

COUNTED_STEPS = 16
"""After a bad step elements are counted for so many steps on a GPU, where counting costs three kernels a gradient."""
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of a parameter's name that DDP, torch.compile, FSDP and activation checkpointing put in."""


class Options(NamedTuple):
    """How ``run.watch`` watches."""

    layers_every: int = 0
    update_every: int = 10
    first_step: int = 0
    comm_hook: bool = False


class ForwardHook:
    """The hook on the model, which goes where the model goes: a copy of it, or what was saved of it, is not watched."""

    def __init__(self, look: Callable[..., None] | None = None) -> None:
        self._look = look

    def __call__(self, model: Any, inputs: Any, output: Any) -> None:
        """Look at an output."""
        if self._look is not None:
            self._look(model, inputs, output)

    def __reduce__(self) -> tuple[type[ForwardHook], tuple[()]]:
        """What pickle and ``copy.deepcopy`` make of it: a hook that looks at nothing."""
        return ForwardHook, ()


class Watch:
    """A model that is watched. Made by :meth:`Run.watch <nantucket.Run.watch>`; :meth:`close` takes its hooks away."""

    def __init__(
        self,
        torch: Any,
        model: Any,
        optimizer: Any,
        scaler: Any,
        options: Options,
        hand_over: Callable[[WatchedStep], None],
        voice: Voice,
    ) -> None:
        self.losses_add = False
        """Whether the losses of a step's microbatches are parts of its loss, and not each a mean of its own."""
        self._torch, self._model, self._optimizer, self._scaler = torch, model, optimizer, scaler
        self._options, self._hand_over, self._voice = options, hand_over, voice
        self._watched = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
        self._parameters = _parameters(torch, self._watched)
        self._is_spread = hasattr(model, "_fsdp_wrapped_module") or any(
            hasattr(each, "to_local") for _, each in self._watched
        )
        self._step: WatchedStep | None = None
        self._last: WatchedStep | None = None
        self._next_number = options.first_step
        self._count_until = -1
        self._orders: dict[int, list[int]] = {}
        """Which gradients the backward passes that are under way have made, in their order."""
        self._places = {id(each): place for place, (_, each) in enumerate(self._watched)}
        self._reduced: set[int] = set()
        self._hooks: list[Any] = []
        self._scaler_update: Any = None
        try:
            self._attach()
        except BaseException:
            self._detach()
            raise

    def close(self) -> None:
        """Take the hooks away; what was measured is sent."""
        self.flush()
        self._detach()

    def _detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._scaler_update is not None:
            del self._scaler.update
            self._scaler_update = None

    def flush(self) -> None:
        """Hand over what is open, finished or not."""
        step, self._step = self._step, None
        if step is None:
            return
        if step.number is None:
            step.number = self._next_number
        self._next_number = step.number + 1
        self._last = step
        self._hand_over(step)

    def claim(self, now: float, number: object, values: dict[str, object]) -> bool:
        """``run.log`` says which step this is. True if its values go with the measured ones; else it sends them."""
        step = self._step
        if step is None or type(number) is not int:
            return False
        if step.number is not None and step.number != number:
            self.flush()
            return False
        step.number, step.time = number, now
        for name, value in values.items():
            if isinstance(value, Readback):
                step.later[name] = value
            else:
                step.values[name] = value
        if step.closed or (self._optimizer is None and self._scaler is None):
            self.flush()
        return True

    def _attach(self) -> None:
        for index, (_, parameter) in enumerate(self._watched):
            self._hooks.append(parameter.register_post_accumulate_grad_hook(self._marker(index)))
        self._hooks.append(self._model.register_forward_hook(ForwardHook(self._guarded(self._forward))))
        if self._optimizer is not None:
            self._hooks.append(self._optimizer.register_step_post_hook(self._guarded(self._stepped)))
        if self._options.comm_hook and not hook_reduction(
            self._torch, self._model, self._guarded(self._look), self._guarded(self._waited)
        ):
            self._voice.once("comm hook", "comm_hook=True needs DistributedDataParallel without a hook of its own")
        if self._scaler is not None:
            self._scaler_update = self._scaler.update
            before = self._guarded(self._scaled)

            def update(*args: Any, **kwargs: Any) -> Any:
                before()
                return self._scaler_update(*args, **kwargs)

            self._scaler.update = update

    def _marker(self, index: int) -> Callable[[Any], None]:
        """The hook of one parameter. It runs for every gradient: it notes a number, and the first asks for the end.

        A backward pass has a number of its own, also one inside another (activation checkpointing), so that what one
        that was broken off has left is not taken for the next one's.
        """
        orders, backward = self._orders, self._torch._C._current_graph_task_id
        queue = self._torch.autograd.Variable._execution_engine.queue_callback
        measured = self._guarded(self._measure)

        def mark(_parameter: Any) -> None:
            number = backward()
            order = orders.get(number)
            if order is None:
                order = orders[number] = []
                queue(lambda: measured(number))
            order.append(index)

        return mark

    def _guarded(self, work: Callable[..., None]) -> Callable[..., None]:
        """``work``, which never raises into the training step."""

        def guarded(*args: Any) -> None:
            try:
                with self._torch.no_grad():
                    work(*args)
            except Exception as error:  # noqa: BLE001  whatever is wrong with the watch, the job trains on
                self._voice.once("watch", "run.watch failed and goes on: %s: %s", type(error).__name__, error)

        return guarded

    def _open(self) -> WatchedStep:
        if self._step is not None and self._step.closed:
            self.flush()
        if self._step is None:
            if self._last is not None and self._last.found_bad:
                self._count_until = self._next_number + COUNTED_STEPS
            self._step = WatchedStep(self._torch, self._parameters, _clock.now())
            every = self._options.layers_every
            self._step.wants_layers = every > 0 and self._next_number % every == 0
        return self._step

    def _measure(self, backward: int) -> None:
        """Behind a backward pass, or behind a part of one that was computed anew (activation checkpointing)."""
        order = [index for index in self._orders.pop(backward) if index not in self._reduced]
        self._reduced.clear()
        self._add(order, [gradient_of(self._watched[index][1]) for index in order], self._is_local())

    def _look(self, bucket: Any) -> None:
        """Before a bucket of DDP is reduced."""
        found = {self._places.get(id(each)): grad for each, grad in zip(bucket.parameters(), bucket.gradients())}
        order = [index for order in self._orders.values() for index in order if index in found]
        self._reduced.update(order)
        self._add(order, [found[index] for index in order], is_local=True)

    def _waited(self, wait: Wait) -> None:
        self._open().waits.append(wait)

    def _add(self, indices: list[int], gradients: list[Any], is_local: bool) -> None:
        step = self._open()
        there = [(index, gradient) for index, gradient in zip(indices, gradients) if gradient is not None]
        if there:
            count = self._next_number <= self._count_until
            indices, gradients = [index for index, _ in there], [gradient for _, gradient in there]
            step.pieces.append(measure(self._torch, indices, gradients, is_local, count))

    def _is_local(self) -> bool:
        """Whether gradients behind a backward pass are still those of this rank alone."""
        distributed = self._torch.distributed
        if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
            return True
        if self._is_spread:
            return False
        settings = getattr(self._model, "ddp_config", None)
        if settings is not None:  # Megatron-LM's own
            return not getattr(settings, "overlap_grad_reduce", False)
        reduced_in_place = getattr(self._model, "gradient_as_bucket_view", False)
        return not (reduced_in_place and getattr(self._model, "require_backward_grad_sync", True))

    def _forward(self, _model: Any, _inputs: Any, output: Any) -> None:
        """A model that computes its own loss says it (Hugging Face's do)."""
        loss: Any = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        if self._model.training:
            self._orders.clear()  # of a backward pass that was broken off
            step = self._open()
            if self._torch.is_tensor(loss) and loss.ndim == 0:
                step.losses.append(Readback(self._torch, loss))
                step.losses_add = self.losses_add

    def _stepped(self, _optimizer: Any, _args: Sequence[Any], _kwargs: Any) -> None:
        step = self._step
        if step is None:
            return
        if self._options.update_every > 0 and self._next_number % self._options.update_every == 0:
            norm = update_norm(self._torch, self._optimizer)
            if norm is not None:
                step.later["update_norm"] = norm
        if self._scaler is None:
            self._close(step)

    def _scaled(self) -> None:
        step, scaler = self._step, self._scaler
        if step is None:
            return
        scale = getattr(scaler, "_scale", None)
        if scale is not None:
            step.later["loss_scale"] = Readback(self._torch, scale.clone())
        states = getattr(scaler, "_per_optimizer_states", {})
        found = [
            infinite for state in list(states.values()) for infinite in state.get("found_inf_per_device", {}).values()
        ]
        if found:
            on = found[0].device
            step.later["skipped"] = Readback(self._torch, sum(each.to(on, non_blocking=True) for each in found))
        self._close(step)

    def _close(self, step: WatchedStep) -> None:
        step.closed = True
        if step.number is not None:
            self.flush()


def _parameters(torch: Any, watched: Sequence[tuple[str, Any]]) -> Parameters:
    names = [".".join(part for part in name.split(".") if part not in WRAPPERS) for name, _ in watched]
    sizes = torch.tensor([local(parameter).numel() for _, parameter in watched], dtype=torch.int64)
    total = sum(parameter.numel() for _, parameter in watched)
    return Parameters(names, [name.rpartition(".")[0] or name for name in names], sizes, total)
