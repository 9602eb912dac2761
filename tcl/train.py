"""Pre-training: build or resume, then one loop.

The order of a step is that of the published code: clamp the temperature, move the teacher, forward, backward, clip,
update, enqueue. Order of data and augmentation are functions of the seed and the step, and everything else that changes
is in the checkpoint, so a resumed run computes what an uninterrupted one would have, bit for bit on a CPU.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tcl.atomic import write_whole
from tcl.checkpoint import load_state, save_checkpoint, save_model
from tcl.config import Recipe
from tcl.convert import load_pretrained_encoders
from tcl.data.captions import CaptionTokenizer
from tcl.data.index import PairIndex, read_pairs
from tcl.data.loader import Batch, PairLoader
from tcl.errors import ConfigError, NonFiniteError
from tcl.models.tcl import TCL
from tcl.momentum import FeatureQueue, MomentumTeacher
from tcl.objective import PretrainLosses, PretrainObjective
from tcl.optim import build_optimizer, distillation_weight, learning_rate
from tcl.preflight import build_tokenizer, changed_batches, check_readable, check_same_model
from tcl.processor import Processor
from tcl.runlog import Reporter, RunLog, StopRequest, point_latest_at
from tcl.sampling import mask_tokens
from tcl.tasks.retrieval import evaluate_retrieval

TEMPERATURE_RANGE = (0.001, 0.5)  # of the learned temperature, as published


@dataclass
class TrainResult:
    """How a run ended.

    Attributes:
        run: its folder.
        step: steps done.
        finished: False when it was told to stop; it can be resumed.
    """

    run: Path
    step: int
    finished: bool


class Training:
    """Everything a run consists of, built from its recipe; nothing is written before `fit`."""

    def __init__(
        self, recipe: Recipe, device: str = "cpu", checkpoint: Path | None = None, reporter: Reporter | None = None
    ) -> None:
        """Read the data, build the model, and continue from `checkpoint` when given.

        Raises:
            ConfigError: the recipe names no data, does not fit it, or does not fit the checkpoint.
        """
        self.recipe = recipe
        self.device = torch.device(device)
        self.reporter = reporter or Reporter()
        self.step = 0
        torch.manual_seed(recipe.train.seed)

        if not recipe.data.train:
            raise ConfigError("data.train names no pairs", hint="give --data SOURCE, for example --data pairs.csv")
        self.index = self._read(recipe.data.train)
        self.val_index = self._read(recipe.data.val) if recipe.data.val else None
        if self.val_index:
            check_readable(self.val_index)
        model_config = recipe.model
        tokenizer = CaptionTokenizer.load(checkpoint) if checkpoint else build_tokenizer(recipe, self.index)
        self.loader = PairLoader(
            self.index,
            tokenizer,
            image_size=model_config.image_size,
            max_length=model_config.max_length,
            batch_size=recipe.data.batch_size,
            workers=recipe.data.workers,
            augment=recipe.data.augment,
            seed=recipe.train.seed,
        )
        self.total_steps = recipe.train.steps or recipe.train.epochs * self.loader.steps_per_epoch

        model = TCL.from_config(model_config, tokenizer.vocab_size, recipe.loss.temperature)
        if model_config.pretrained and checkpoint is None:
            load_pretrained_encoders(model)
        queue = FeatureQueue(model_config.embed_dim, recipe.loss.queue_size)
        self.objective = PretrainObjective(model, MomentumTeacher(model), queue).to(self.device).train()
        self.model, self.teacher, self.queue = model, self.objective.teacher, queue
        model.processor = Processor(tokenizer, (model_config.image_size,) * 2, model_config.max_length)
        self.optimizer = build_optimizer(model, recipe.optim)
        self.mask_generator = torch.Generator().manual_seed(recipe.train.seed)
        self.negative_generator = torch.Generator(self.device).manual_seed(recipe.train.seed)
        self.nonfinite = torch.zeros((), device=self.device)  # updates that were withheld
        self.unchecked: list[str] = []  # samples seen since the last look at it, which was after `checked_step`
        self.grad_norm = torch.zeros((), device=self.device)
        if checkpoint:
            self._restore(checkpoint)
        self.checked_step = self.step

    def _read(self, sources: list[str]) -> PairIndex:
        index = read_pairs(sources, self.recipe.data.images)
        if index.skipped:
            reason = index.skipped_reasons[0] if index.skipped_reasons else ""
            self.reporter.message(f"{index.skipped} rows skipped of {', '.join(sources)}; the first: {reason}")
        return index

    # --- one step ------------------------------------------------------------------------------------------------

    def train_step(self, batch: Batch) -> PretrainLosses:
        """Forward, backward and update on one batch."""
        recipe, tokenizer = self.recipe, self.model.processor.tokenizer
        masked = mask_tokens(
            batch.input_ids,
            batch.attention_mask,
            cls_id=tokenizer.cls_id,
            mask_id=tokenizer.mask_id,
            vocab_size=tokenizer.vocab_size,
            probability=recipe.loss.mlm_probability,
            generator=self.mask_generator,
        )
        masked = type(masked)(*(tensor.to(self.device, non_blocking=True) for tensor in masked))
        batch = batch.to(self.device)
        lr = learning_rate(self.step, recipe.optim, self.loader.steps_per_epoch, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with torch.no_grad():
            self.model.temp.clamp_(*TEMPERATURE_RANGE)
        self.teacher.update(self.model, recipe.loss.momentum)
        with self._autocast():
            losses, image_feat, text_feat = self.objective(
                batch.images,
                batch.images_aug,
                batch.input_ids,
                batch.attention_mask,
                masked,
                distillation_weight(self.step, recipe.loss.alpha, self.loader.steps_per_epoch),
                self.negative_generator,
            )
        losses.total.backward()
        self._update(losses)
        self.queue.enqueue(image_feat, text_feat)
        self.step += 1
        self.unchecked += batch.sample_ids
        return losses

    def _update(self, losses: PretrainLosses) -> None:
        parameters = list(self.model.parameters())
        clip_norm = self.recipe.optim.clip_norm
        self.grad_norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm if clip_norm else float("inf"))
        bad = (~torch.isfinite(self.grad_norm + losses.total.detach())).float()
        # The fused optimizer skips the update where `found_inf` is set, without the host having to wait and look.
        self.optimizer.grad_scale, self.optimizer.found_inf = None, bad  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.nonfinite += bad

    def _autocast(self) -> torch.autocast | nullcontext[None]:
        if self.device.type == "cuda" and self.recipe.train.precision == "bf16":
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()

    def _raise_if_nonfinite(self, run: Path) -> None:
        samples, self.unchecked = self.unchecked, []
        first, self.checked_step = self.checked_step + 1, self.step
        if self.nonfinite.item() == 0:
            return
        when = f"at step {self.step}" if first == self.step else f"between steps {first} and {self.step}"
        place = run / "nonfinite_samples.json"
        place.write_text(json.dumps({"step": self.step, "samples": samples}, indent=2) + "\n", encoding="utf-8")
        raise NonFiniteError(
            f"the loss or its gradient is not finite {when}; the update was not applied. "
            f"Samples: {', '.join(samples[:3])}{', ...' if len(samples) > 3 else ''} (all in {place})",
            hint=f"look at these samples, or lower optim.lr, then continue with --resume --out {run}",
        )

    # --- the run -------------------------------------------------------------------------------------------------

    def fit(self, run: Path) -> TrainResult:
        """Train to the end, or until SIGINT or SIGTERM, which save first.

        Raises:
            NonFiniteError: a loss or gradient stopped being finite.
        """
        train = self.recipe.train
        run.mkdir(parents=True, exist_ok=True)
        write_whole(run / "config.yaml", self.recipe.to_yaml())
        point_latest_at(run)
        log = RunLog(run, self.step)
        self.reporter.started(self.step, self.total_steps)
        with StopRequest() as stop:
            stopping = False
            while self.step < self.total_steps and not stopping:
                epoch, start = divmod(self.step, self.loader.steps_per_epoch)
                batches = self.loader.batches(epoch, start)
                for batch in batches:
                    log.bad_samples(self.step + 1, batch.bad)
                    losses = self.train_step(batch)
                    self.reporter.stepped(self.step)
                    finished, stopping = self.step >= self.total_steps, stop.requested
                    logs = finished or self.step % train.log_every == 0
                    evaluates = self.val_index and (finished or self.step % train.eval_every == 0)
                    saves = finished or stopping or self.step % train.checkpoint_every == 0
                    if self.device.type == "cpu" or logs or saves:
                        self._raise_if_nonfinite(run)
                    if logs:
                        self.reporter.logged(log.metrics(self._record(losses)))
                    if saves:  # before validation, which may fail
                        self.save(run)
                    if evaluates:
                        with log.paused():
                            record = self._validate()
                        self.reporter.logged(log.metrics(record))
                    if finished or stopping:
                        break
        self.loader.close()
        if self.step >= self.total_steps:
            save_model(self.model, run / "model")
        return TrainResult(run, self.step, self.step >= self.total_steps)

    def _record(self, losses: PretrainLosses) -> dict[str, Any]:
        step, epoch_steps = self.step, self.loader.steps_per_epoch
        return {
            "step": step,
            "epoch": step / epoch_steps,
            **{name: value.item() for name, value in losses.named().items()},
            "lr": self.optimizer.param_groups[0]["lr"],
            "temperature": self.model.temp.item(),
            "grad_norm": self.grad_norm.item(),
            "samples": step * self.loader.batch_size,
        }

    def _validate(self) -> dict[str, Any]:
        assert self.val_index is not None
        self.model.eval()
        with self._autocast():
            result = evaluate_retrieval(self.model, self.val_index, batch_size=self.recipe.data.batch_size)
        self.model.train()
        return {"step": self.step, **{f"val_{name}": value for name, value in result.vectors.items()}}

    # --- state ---------------------------------------------------------------------------------------------------

    def save(self, run: Path) -> Path:
        """Write a checkpoint."""
        state = {
            "teacher": self.teacher.state_dict(),
            "queue": self.queue.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "mask_generator": self.mask_generator.get_state(),
            "negative_generator": self.negative_generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        meta = {
            "step": self.step,
            "epoch": self.step / self.loader.steps_per_epoch,
            "recipe": self.recipe.model_dump(),
            "data_fingerprint": self.index.fingerprint,
        }
        return save_checkpoint(run, self.model, state, meta, self.recipe.train.keep)

    def _restore(self, checkpoint: Path) -> None:
        weights, state, meta = load_state(checkpoint)
        check_same_model(self.recipe, meta["recipe"], checkpoint)
        if meta["data_fingerprint"] != self.index.fingerprint:
            self.reporter.message("the training pairs changed since the checkpoint: their order will differ from it")
        for change in changed_batches(self.recipe, meta["recipe"]):
            self.reporter.message(change)
        self.model.load_state_dict(weights)
        self.teacher.load_state_dict(state["teacher"])
        self.queue.load_state_dict(state["queue"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.param_groups[1]["weight_decay"] = (
            self.recipe.optim.weight_decay
        )  # a setting: it may have changed
        self.mask_generator.set_state(state["mask_generator"])
        self.negative_generator.set_state(state["negative_generator"])
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        self.step = meta["step"]
