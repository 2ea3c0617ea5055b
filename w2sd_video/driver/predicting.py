"""A pipeline's loop that makes one prediction after another, of what it is handed from outside.

The pipeline is called in a thread of its own. At each turn it is handed latents and a timestep, evaluates its network,
guides as it does, and at ``scheduler.step`` waits for the next. No step is ever taken.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch

from w2sd_video.algorithm import StepRequest
from w2sd_video.argument_checks import check_latents
from w2sd_video.backends import register, registered
from w2sd_video.branch import Branch
from w2sd_video.driver.call import ReflectedPipeline, walking
from w2sd_video.driver.loop_plan import Plan, first_looks
from w2sd_video.driver.networks import WAITING_THREADS
from w2sd_video.driver.rehearsal import CallState, RehearsalOver
from w2sd_video.driver.step_call import StepCall
from w2sd_video.driver.turns import ProbeRequest, Turn
from w2sd_video.driver.walk import Walk
from w2sd_video.reflection_settings import Reflection, Role
from w2sd_video.reuse import Changes

CLOSED = "the predictor is closed: its block has ended, or another one of its pipeline was made"


class Asked(NamedTuple):
    """A prediction that is asked for, at the timestep of a call of the scheduler, and where it goes."""

    latents: torch.Tensor
    call: int
    role: Role
    prediction: Future[torch.Tensor]


class Loop:
    """A pipeline's loop that waits for latents.

    Args:
        pipe: a pipeline of diffusers; it is left as it is, and a shallow copy of it is called.
        branches: the setting of each role.
        arguments: of the pipeline's call.
        led: has a pipeline led by this loop inside a block.

    Raises:
        TypeError, ValueError: as of ``reflection``, found before this returns.
    """

    def __init__(
        self, pipe: Any, branches: Mapping[Role, Branch], arguments: Mapping[str, Any], led: Led | None = None
    ) -> None:
        if isinstance(pipe, ReflectedPipeline):
            raise ValueError("the pipeline is being reflected; end that block before making a predictor")
        self.latents = torch.zeros(0)
        self.scheduler: Any = None
        self.begin = 0
        self.idle_steps: Collection[int] = ()
        self.changes: Callable[[], Changes] = dict
        self._asked: SimpleQueue[Asked | None] = SimpleQueue()
        self._ready: Future[None] = Future()
        self._answering: Future[torch.Tensor] | None = None
        self._one_at_a_time = threading.Lock()
        self._led = _led if led is None else led
        called = copy.copy(pipe)
        vars(called)["scheduler"] = copy.deepcopy(getattr(pipe, "scheduler", None))
        vars(called)["_progress_bar_config"] = {"disable": True}
        for name, second in registered(pipe).items():
            register(called, name, second)
        self._called = called
        work = (called, branches, dict(arguments), _settings_of_thread())
        self._thread = threading.Thread(target=self._run, args=work, name=f"predictor of {type(pipe).__name__}")
        self._thread.daemon = True
        self._thread.start()
        try:
            self._ready.result()
        except BaseException:
            self.close()
            raise

    def predicted(self, latents: torch.Tensor, timestep: torch.Tensor, role: Role) -> torch.Tensor:
        """Return a prediction of the network; what goes wrong in the loop is raised here, and ends it."""
        check_latents(latents)
        if latents.shape != self.latents.shape:
            raise ValueError(
                f"latents must have the shape that the pipeline's call has, {tuple(self.latents.shape)}, got "
                f"{tuple(latents.shape)}"
            )
        asked = Asked(latents.detach().to(self.latents), self._call_at(timestep), role, Future())
        with self._one_at_a_time:
            if not self._thread.is_alive():
                raise RuntimeError(CLOSED)
            self._asked.put(asked)
            return asked.prediction.result().to(latents.dtype)

    def _call_at(self, timestep: torch.Tensor) -> int:
        """Return the first call of the scheduler at a timestep, or refuse one that it does not go through."""
        timesteps = self.scheduler.timesteps[self.begin :]
        same = (timesteps == torch.as_tensor(timestep, device=timesteps.device)).nonzero()
        if not len(same):
            raise ValueError(
                f"timestep {float(timestep):g} is none of those that the pipeline's call goes through: "
                f"{', '.join(f'{float(other):g}' for other in timesteps)}"
            )
        return self.begin + int(same[0])

    def close(self) -> None:
        """End the loop, and give the networks back."""
        self.end()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def end(self) -> None:
        """Have the loop end when it has nothing more to answer."""
        self._asked.put(None)

    def _run(self, pipe: Any, branches: Mapping[Role, Branch], arguments: dict[str, Any], settings: Any) -> None:
        WAITING_THREADS.add(threading.get_ident())
        try:
            with _with_settings(*settings), self._led(pipe, branches, self):
                pipe(**arguments)
            raise RuntimeError(f"{type(pipe).__name__} never called scheduler.step, so nothing can be predicted")
        except RehearsalOver:
            pass
        except BaseException as error:
            waiting = self._answering or self._ready
            if not waiting.done():
                waiting.set_exception(error)
        finally:
            WAITING_THREADS.discard(threading.get_ident())
            if not self._ready.done():
                self._ready.set_exception(RuntimeError("the predictor was closed before it was ready"))
            self._refuse_what_is_left()

    def _refuse_what_is_left(self) -> None:
        while not self._asked.empty():
            asked = self._asked.get()
            if asked is not None:
                asked.prediction.set_exception(RuntimeError(CLOSED))

    def is_ready(self, latents: torch.Tensor, walk: Walk, begin: int) -> None:
        """Note what the pipeline begins with; predictions can be asked for."""
        self.latents, self.scheduler, self.begin = latents, copy.deepcopy(walk.wrapped), begin
        plan = walk.plan
        self.idle_steps, self.changes = plan.idle, partial(walk.gap_changes, plan.trajectory, plan.moments)
        self._ready.set_result(None)

    def answer(self, prediction: torch.Tensor) -> None:
        """Hand out the prediction that was asked for."""
        assert self._answering is not None
        answering, self._answering = self._answering, None
        answering.set_result(prediction)

    def next_asked(self) -> Asked:
        """Wait for what is asked next."""
        asked = self._asked.get()
        if asked is None:
            raise RehearsalOver
        self._answering = asked.prediction
        return asked


Led = Callable[[Any, Mapping[Role, Branch], Loop], AbstractContextManager[Any]]


class LedWalk(Walk):
    """A walk whose turns are asked for from outside."""

    def __init__(self, scheduler: Any, settings: Reflection, state: CallState, loop: Loop) -> None:
        super().__init__(scheduler, settings, state)
        self._loop = loop

    def _wait(self, first: torch.Tensor, call: int) -> torch.Tensor:
        """Say what the loop begins with, wait for what is asked, and return the latents that it is asked of."""
        self._loop.is_ready(first, self, call)
        self._algorithm = self._answering()
        latents: torch.Tensor = next(self._algorithm).latents
        return latents

    def _answering(self) -> Generator[Any, torch.Tensor, torch.Tensor]:
        """Yield what is asked for, and hand out what is sent for it."""
        while True:
            asked = self._loop.next_asked()
            call, state = asked.call, self._state
            timestep = self.wrapped.timesteps[call]
            if state.measures and len(state.layouts) < state.stages:  # the other stage may be the one to evaluate
                self.turns.append(Turn(call, timestep, ProbeRequest("measure", 0, 1)))
            latents = self._handed_back.to_be_divided(asked.latents, self.plan.input_scale(call))
            request = StepRequest(latents, call, asked.role)
            self.turns.append(Turn(call, timestep, request, begins_call=False))
            prediction = yield request
            self._handed_back.compare()
            self._drift.check()
            self._loop.answer(prediction.detach().clone())


class _WatchedWalk(LedWalk):
    """A walk whose turns are asked for from outside, after those in which the loop is looked at."""

    def _planned(self, calls: range) -> Plan:
        if calls.stop < len(self.wrapped.timesteps):
            raise ValueError(
                f"{self.watch.pipeline} goes through its timesteps in parts, so that no loop of it is there for all of "
                "them, and it can have no predictor"
            )
        plan, timestep = self._sampling_planned(calls), self.wrapped.timesteps[calls.start]
        return replace(plan, turns=first_looks(calls.start, timestep, plan.total_steps, True, self._state.measures))

    def _look(self, turn: Turn, asked: ProbeRequest, step_call: StepCall) -> torch.Tensor:
        """Look at a turn, and after the last one begin to wait."""
        if asked.is_first:
            self._first = step_call.latents.clone()
            variances = str(getattr(self.wrapped.config, "variance_type", ""))
            if variances.startswith("learned") and step_call.prediction.shape != self._first.shape:
                raise ValueError(
                    f"the network of {self.watch.pipeline} predicts the variance of the steps of "
                    f"{type(self.wrapped).__name__} beside, which a predictor leaves out; use reflection(pipe, ...) "
                    'instead, or make the scheduler with variance_type="fixed_small"'
                )
        latents = super()._look(turn, asked, step_call)
        if self._algorithm is None and turn is self.turns[-1]:
            return self._wait(self._first, turn.call)
        return latents


def _led(pipe: Any, branches: Mapping[Role, Branch], loop: Loop) -> AbstractContextManager[Any]:
    return walking(pipe, branches, Reflection(), partial(_WatchedWalk, loop=loop))


def _settings_of_thread() -> tuple[Any, dict[str, torch.dtype]]:
    """Return what torch has for each thread: the stream, and the dtype of autocast by device where it is on."""
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None
    devices = [device for device in ("cuda", "cpu") if torch.is_autocast_enabled(device)]
    return stream, {device: torch.get_autocast_dtype(device) for device in devices}


@contextmanager
def _with_settings(stream: Any, autocast: Mapping[str, torch.dtype]) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(torch.cuda.stream(stream))
        for device, dtype in autocast.items():
            stack.enter_context(torch.autocast(device, dtype))
        yield
