"""What both trainings share: autocast, steps, checkpoints, resuming.

`TrainingLoop` saves the position (epoch, batch, step) and the state of all random numbers, so that
a run that was killed and started again has the same losses as one that was not interrupted.

Several processes (`weaktr.processes`) share every batch: each has some of its images, and all of
them the same weights, gradients, averages and random numbers. So nothing that is saved knows how
many there were, and a run goes on with any number of them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from inspect import signature
from pathlib import Path
from typing import (
    Any,
    Generic,
    Literal,
    NoReturn,
    Protocol,
    TypeAlias,
    TypeVar,
    cast,
)

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from weaktr import processes
from weaktr.config import Amp, Recipe
from weaktr.messages import duration, few
from weaktr.models.checkpoints import load_strict
from weaktr.models.dropping import Part, drop_for
from weaktr.models.memory import is_out_of_memory
from weaktr.models.precision import amp_type, autocast, tf32_of, training_amp
from weaktr.progress import Meter
from weaktr.stopping import Held, Stopped, held_signals
from weaktr.training.average import MovingAverage
from weaktr.training.loader import EpochLoader
from weaktr.training.loss_log import LossLog
from weaktr.training.memory import StepMemory, out_of_memory
from weaktr.training.micro_batches import MicroBatches, is_tried, most_that_fit
from weaktr.training.pace import Pace
from weaktr.training.state import (
    STATE,
    load_state,
    position_in,
    random_state,
    refused_if_damaged,
    restore_optimizer,
    restore_random_state,
    save_state,
)
from weaktr.training.workers import choose_processes

log = logging.getLogger("weaktr")
M = TypeVar("M", bound=nn.Module)
#: A batch -> name -> scalar.
LossesOf: TypeAlias = Callable[..., Mapping[str, Tensor]]

#: Has torch leave buffers, which no training changes, as they are; newer versions name it anew.
NO_BUFFERS: dict[str, Any] = (
    {"forward_sync_buffers": False}
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else {"broadcast_buffers": False}
)
#: By what fp16 scales losses at least: 2^16 at first, half of it after each step it has to skip.
LEAST_SCALE = 2.0**-10
#: Images of a step on a CPU by which its time is measured.
IMAGES_ON_CPU = 2


class StepSettings(Protocol):
    """What `TrainingLoop` reads of `TrainCamConfig` and `TrainSegConfig`."""

    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def accumulate(self) -> int: ...
    @property
    def amp(self) -> Amp: ...
    @property
    def compile(self) -> bool: ...
    @property
    def recompute(self) -> bool: ...
    @property
    def micro_batch(self) -> int | Literal["auto"]: ...
    @property
    def clip_grad(self) -> float | None: ...
    @property
    def ema_decay(self) -> float | None: ...
    @property
    def validate_every(self) -> int: ...


class _Losses(nn.Module):
    """A model and its losses as the one module whose gradients torch adds up over processes."""

    def __init__(self, model: nn.Module, losses_of: LossesOf) -> None:
        super().__init__()
        self.model, self.losses_of = model, losses_of

    def forward(self, *batch: Tensor) -> Mapping[str, Tensor]:
        """The losses of this process's part of a batch."""
        return self.losses_of(*batch)


class TrainingLoop(Generic[M]):
    """Epochs, batches and steps with checkpoints in between.

    Args:
        folder: of the stage; holds state.pt and metrics.jsonl, which the first process writes.
        model: on its device.
        optimizer: of the model's parameters.
        loader: the batches.
        settings: epochs, accumulation, autocast, clipping, moving average.
        recipe: how often to log and to save.
        set_lr: sets the learning rates; called with (epoch, step) before each step.
        beside: names among the losses of what is only logged.
        watch: gets the entries of the log whenever some are written.
    """

    def __init__(
        self,
        folder: Path,
        model: M,
        optimizer: torch.optim.Optimizer,
        loader: EpochLoader,
        settings: StepSettings,
        recipe: Recipe,
        set_lr: Callable[[int, int], None],
        *,
        beside: Collection[str] = (),
        watch: Callable[[Sequence[Mapping[str, float]]], None] | None = None,
    ) -> None:
        self.folder, self.model, self.optimizer, self.loader = folder, model, optimizer, loader
        self.stage = folder.name.partition(".")[0]  # an attempt has more in its name
        self.settings, self.recipe, self.set_lr = settings, recipe, set_lr
        self.device = next(model.parameters()).device
        self.epoch = self.batch = self.step = 0
        self.steps_per_epoch = max(1, len(loader) // settings.accumulate)
        if len(loader) < settings.accumulate:
            raise ValueError(
                f"accumulate: expected at most the {len(loader)} batches of an epoch, "
                f"got {settings.accumulate}"
            )
        self.amp = training_amp(settings.amp, self.device)
        dtype = amp_type(self.amp, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype is torch.float16)
        self.average: MovingAverage | None = None
        if settings.ema_decay is not None:
            self.average = MovingAverage(model, settings.ema_decay)
        self.part = Part(processes.rows(settings.batch_size), settings.batch_size)
        size = settings.batch_size if settings.micro_batch == "auto" else settings.micro_batch
        self.micro = MicroBatches(self.part, size)
        if processes.count() * self.micro.count > 1:
            drop_for(model, self.part)
        self.memory = StepMemory(self.stage, model, optimizer)
        self.losses = LossLog(folder, self.stage, loader, recipe.log_steps, beside, watch)
        self._agreement = processes.Agreement()
        self._saved_at = time.monotonic()
        self._resume()
        self._require_same_position()
        batches = self.steps_per_epoch * settings.accumulate
        self.pace = Pace(self.stage, settings.epochs, batches)

    def train(
        self,
        losses_of: LossesOf,
        validate: Callable[[M], Mapping[str, float]] | None = None,
    ) -> M:
        """Run all epochs that are left.

        Args:
            losses_of: the losses of this process's part of a batch; those of all parts add up to
                the losses of the batch, whose sum is minimised.
            validate: scores of a model in eval mode, logged every ``validate_every`` epochs. They
                have no influence on the training or on the model that is returned.

        Returns:
            The trained model in eval mode: the moving average where one is kept.

        Raises:
            Stopped: a signal came; all that was trained is saved.
            MemoryError: too little; says in one line what to set.
            ValueError: see `learn`.
        """
        try:
            with closing(self.loader):
                is_left = self.epoch < self.settings.epochs
                if is_left:
                    self._choose_pieces(losses_of)
                shared = None
                if processes.count() > 1:
                    module = _Losses(self.model, losses_of)
                    shared = DistributedDataParallel(module, **NO_BUFFERS)
                if is_left:
                    self._choose_workers(losses_of, shared)
                return self._train(losses_of, shared, validate)
        except Stopped as stopped:  # while nothing was trained, as in a validation
            raise Stopped(stopped.number, self._saved_in_words()) from stopped
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(
                error,
                self.stage,
                self.micro.size,
                compile=self.settings.compile,
                recompute=self.settings.recompute,
            ) from error

    def _choose_workers(self, losses_of: LossesOf, shared: DistributedDataParallel | None) -> None:
        """Settle how many processes load images, where that is left to a measurement."""
        if self.loader.num_workers != "auto":
            return
        images = self.micro.size
        # what is compiled, or draws for a whole batch, takes batches of one size
        if self.device.type == "cpu" and not self.settings.compile and processes.count() == 1:
            images = min(images, IMAGES_ON_CPU)
        self.loader.num_workers = choose_processes(
            self.stage,
            self.loader.dataset,
            lambda batch: self._try_step(losses_of, batch, shared),
            images,
            self.device,
            len(self.loader),
        )

    def _choose_pieces(self, losses_of: LossesOf) -> None:
        """Settle how many images a GPU computes at once, where that is left to a trial."""
        settings = self.settings
        if settings.micro_batch != "auto" or not is_tried(settings.compile, self.device):
            return
        images, item = self.micro.size, self.loader.dataset[0]
        trained = sum(p.nbytes for p in self.model.parameters() if p.requires_grad)
        held = [v for state in self.optimizer.state.values() for v in state.values()]
        of_optimizer = 2 * trained - sum(x.nbytes for x in held if isinstance(x, Tensor))
        # gradients of other pieces, and what the processes exchange
        kept = (1 + (processes.count() > 1)) * trained + max(of_optimizer, 0)
        kept += images * sum(part.nbytes for part in item)

        def step(batch: list[Tensor]) -> None:
            if len(batch[0]) < images:
                drop_for(self.model, self.part)
                self.micro.resize(len(batch[0]))
            self._try_step(losses_of, batch)

        processes.total(torch.zeros(1, device=self.device))  # at the first NCCL takes its memory
        with processes.alone():
            most = most_that_fit(self.stage, step, item, images, kept, self.device)
        self.micro.resize(most)

    def _try_step(
        self,
        losses_of: LossesOf,
        batch: list[Tensor],
        shared: DistributedDataParallel | None = None,
    ) -> None:
        """Losses and gradients of some images, of which nothing stays.

        What is compiled is used again, so a whole part is computed just as in `learn`.
        """
        self.model.train()
        own = self.part.rows
        if len(batch[0]) < own.stop - own.start:
            self.part.rows = slice(0, len(batch[0]))
        try:
            with nullcontext() if shared is None else shared.no_sync():
                with autocast(self.amp, self.device):
                    losses = (losses_of if shared is None else shared)(*batch)
                torch.stack(list(losses.values())).sum().backward()
        finally:
            self.part.rows = own
            self.optimizer.zero_grad(set_to_none=True)

    def _train(
        self,
        losses_of: LossesOf,
        shared: DistributedDataParallel | None,
        validate: Callable[[M], Mapping[str, float]] | None,
    ) -> M:
        """`train` with loading processes that somebody else ends; for `shared` see `learn`."""
        every = self.settings.validate_every
        while self.epoch < self.settings.epochs:
            is_scored = validate is not None and every > 0 and (self.epoch + 1) % every == 0
            with self._stopping() as held:
                self._train_epoch(losses_of, shared, held)
                if is_scored:
                    self.save()  # scores may take long
                else:
                    self._end_epoch()
            if validate is not None and is_scored:
                scores = validate(self.trained_model().eval())
                with self._stopping():
                    self.losses.write_scores(self.epoch, self.step, scores)
                    processes.wait_for_all()
                    self._end_epoch()
        self.losses.close()
        return self.trained_model().eval()

    @contextmanager
    def _stopping(self) -> Iterator[Held]:
        """Hold signals back; end after the body, which saves, where one came to any process."""
        with held_signals() as held:
            yield held
            if number := max(processes.of_each(held.number)):
                self._stop(number, held)

    def _train_epoch(
        self, losses_of: LossesOf, shared: DistributedDataParallel | None, held: Held
    ) -> None:
        """Train with what is left of an epoch; saves in between, and ends when a signal comes.

        Args:
            losses_of: see `train`.
            shared: what adds up gradients over processes; None = there is one process.
            held: notes signals.
        """
        every = self.recipe.checkpoint_steps
        for batch in self.batches():
            self.learn(batch, losses_of, shared)
            if self.batch % self.settings.accumulate:
                continue
            late = time.monotonic() - self._saved_at > self.recipe.checkpoint_seconds
            is_late, number = self._agreement.largest([int(late), held.number])
            if is_late or number or (every is not None and self.step % every == 0):
                self.save()
            if number:
                self._stop(number, held)

    def _stop(self, number: int, held: Held) -> NoReturn:
        """End because of a signal that some process got; everything is saved."""
        self.losses.close()
        processes.wait_for_all()  # none ends before the state is written
        held.number = 0
        raise Stopped(number, self._saved_in_words())

    def _end_epoch(self) -> None:
        """Save after an epoch, and log a line."""
        told = self.losses.end_epoch()
        self.epoch, self.batch = self.epoch + 1, 0
        self.save()
        if told is not None:
            self._log_epoch(*told)

    def batches(self) -> Iterator[list[Tensor]]:
        """The batches that are left of this epoch, on the model's device."""
        settings = self.settings
        total = self.steps_per_epoch * settings.accumulate
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        title = f"{self.stage} epoch {self.epoch + 1}/{settings.epochs}"
        size = settings.batch_size
        done = self.batch * size
        with Meter(title, total * size, done=done, is_minor=True) as meter:
            for batch in self.loader.epoch(self.epoch, self.batch):
                if self.batch == total:
                    break
                yield [part.to(self.device, non_blocking=True) for part in batch]
                self.pace.count(self.epoch, self.batch)
                meter.advance(size, self.losses.note)

    def learn(
        self,
        batch: Sequence[Tensor],
        losses_of: LossesOf,
        shared: DistributedDataParallel | None = None,
    ) -> None:
        """Add the gradients of a batch's losses; update the weights after a step's last batch.

        Args:
            batch: this process's part, on the device.
            losses_of: see `train`.
            shared: the same, with gradients added up over processes; None = there is one process.

        Raises:
            ValueError: a loss was not finite (checked when losses are logged, see
                `Recipe.log_steps`).
        """
        is_step = (self.batch + 1) % self.settings.accumulate == 0

        def losses_now(*piece: Tensor) -> Mapping[str, Tensor]:
            with autocast(self.amp, self.device):
                return losses_of(*piece)

        sums = []
        with closing(self.micro.of(batch, losses_now)) as pieces:
            for piece, is_end in pieces:
                with nullcontext() if shared is None or (is_step and is_end) else shared.no_sync():
                    with self.memory.first_pass(), autocast(self.amp, self.device):
                        losses = (losses_of if shared is None else shared)(*piece)
                    sums.append(self._backward(losses))
        self.losses.end_batch(sum(sums[1:], sums[0]))  # of one piece nothing is computed
        self.batch += 1
        if is_step:
            self._step()

    def _backward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Add the gradients of the sum of `losses`, which is returned."""
        accumulate = self.settings.accumulate
        total = self.losses.total(losses)
        with tf32_of(self.amp, self.device):
            # torch takes the mean over processes, and the parts are to be added up
            self.scaler.scale(total * processes.count() / accumulate).backward()
        self.losses.add(total, losses, accumulate)
        return total.detach()

    def trained_model(self) -> M:
        """The model to use now: the moving average where one is kept."""
        return self.model if self.average is None else cast(M, self.average.module)

    def save(self) -> None:
        """Write a checkpoint from which `TrainingLoop` continues; every process calls this.

        Raises:
            ValueError: weights are no longer finite; the checkpoint before stays.
        """
        position = self.losses.position()
        self._require_finite_weights()
        self._require_finite_gradients()
        self._saved_at = time.monotonic()
        if processes.is_first():
            state = {
                "position": [self.epoch, self.batch, self.step, position],
                "model": self.model.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "random": random_state(),
            }
            save_state(self.folder / STATE, state)
            self._saved_at = time.monotonic()  # writing takes its time
        self._agreement.forget()  # a process that was late when it was last asked
        self._note_saved()

    def _note_saved(self) -> None:
        """Remember, for what is said at an end, what the checkpoint is of."""
        epoch = self.epoch if self.batch == 0 and self.step else self.epoch + 1
        self.losses.saved = f"epoch {epoch}, step {self.step}"

    def _saved_in_words(self) -> str:
        """What the checkpoint is of; "" where there is none."""
        saved = self.losses.saved
        return f"{self.stage}: {saved} is saved" if saved else ""

    def _require_finite_weights(self) -> None:
        """Raise `ValueError` where a step has ruined the model, whose loss may still be finite."""
        named = [(name, p.detach()) for name, p in self.model.named_parameters()]
        finite = torch.stack([p.isfinite().all() for _, p in named]).tolist()
        wrong = [name for (name, _), is_finite in zip(named, finite, strict=True) if not is_finite]
        if wrong:
            raise ValueError(
                f"{self.stage}: weights not finite after step {self.step} ({few(wrong)}). "
                f"{self.losses.advice()}"
            )

    def _require_finite_gradients(self) -> None:
        """Raise `ValueError` where fp16 skips step after step: no scale makes gradients finite."""
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else LEAST_SCALE
        if scale < LEAST_SCALE:
            raise ValueError(
                f"{self.stage}: gradients not finite in fp16 up to step {self.step}, whatever they "
                f"are scaled by (now {scale:.3g}), so that steps are skipped. "
                f"{self.losses.advice()}"
            )

    def _resume(self) -> None:
        """Continue from the checkpoint, where there is one.

        Raises:
            ValueError: it is damaged, or of another model.
        """
        path = self.folder / STATE
        state = load_state(path)
        if state is None:
            self.losses.resume(0, 0)
            return
        with refused_if_damaged(path):
            load_strict(self.model, state["model"])
            if self.average is not None:
                load_strict(self.average, state["average"])
            restore_optimizer(self.optimizer, state["optimizer"])
            if state["scaler"]:  # else it was trained without fp16, as on another device
                self.scaler.load_state_dict(state["scaler"])
            self.epoch, self.batch, self.step, written = position_in(
                state, self.settings.epochs, len(self.loader)
            )
            restore_random_state(state["random"])
        self._note_saved()
        epoch = min(self.epoch + 1, self.settings.epochs)
        log.info("%s: going on from epoch %d, step %d", self.stage, epoch, self.step)
        self.losses.resume(written, self.epoch)

    def _require_same_position(self) -> None:
        """Raise `ValueError` where processes would train from different checkpoints."""
        first, *others = processes.of_each([self.epoch, self.batch, self.step])
        for number, own in enumerate(others, 1):
            if own != first:
                raise ValueError(
                    f"{self.folder / STATE}: process 0 goes on from epoch {first[0] + 1}, step "
                    f"{first[2]}, process {number} from epoch {own[0] + 1}, step {own[2]}: "
                    "expected one file on storage that all machines share; start again once all "
                    "of them show it as it is"
                )

    def _step(self) -> None:
        """Update the weights; log when due."""
        self.set_lr(self.epoch, self.step)
        self.scaler.unscale_(self.optimizer)
        if self.settings.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.memory.log_once()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        self.losses.end_step(self.epoch, self.step, lr, self.batch)

    def _log_epoch(self, losses: str, lr: float) -> None:
        """Log the epoch that has ended: losses, learning rate, speed and what is left."""
        left = self.pace.seconds_left(self.epoch, self.batch)
        log.info(
            "%s: epoch %d of %d, %s, lr %.3g, %.1f images/s%s",
            self.stage, self.epoch, self.settings.epochs, losses, lr,
            self.settings.batch_size / max(self.pace.seconds_each(), 1e-9),
            f", about {duration(left)} left" if left else "",
        )  # fmt: skip
