"""The GRPO loop of one rank: what a step is, in which order, and what state it leaves behind.

A position (E, S) is MindRLHF's: S steps of epoch E are done. A save comes at the top of a step, before it is
trained, and once more at (epochs, 0). Everything that a later step depends on lives in the objects that
`_checkpointer` hands over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

import ms_resume
from grpo_arithmetic import data, evaluate, grpo, reward, rollout, weights
from grpo_arithmetic.grpo import Experience, Scorer
from grpo_arithmetic.metrics import Metrics, due
from grpo_arithmetic.model import Decoder
from grpo_arithmetic.optim import Learner, LossScaler, Update, WarmUpThenDecay, adamw
from grpo_arithmetic.request import Request
from grpo_arithmetic.rollout import Sampler
from grpo_arithmetic.settings import Config
from grpo_arithmetic.task import Ints, Prompts
from grpo_arithmetic.world import World
from ms_resume.resume.leaving import Leaving

SHOWN = 4
"""Samples that are shown at a time."""

PhaseHook = Callable[[str, int, int], None]


class GRPOTrainer:
    """Builds a rank's state from a configuration and trains it.

    `leaving` has listened to signals since the process began. `on_phase` holds callables that hear "start", "rollout",
    "update" and "save" with the position, as each begins.
    """

    def __init__(self, config: Config, world: World, request: Request, leaving: Leaving | None = None) -> None:
        self.config, self.world, self.request, self._leaving = config, world, request, leaving
        self.on_phase: list[PhaseHook] = []
        self._wishes = 0.0
        self._last: dict[str, float] = {}
        dataset_file = self._dataset_file()
        self.held_out = data.read_all(data.held_out_file(dataset_file))
        self._build_nets(self.held_out.tokens.shape[1])
        loss_scale, window = config.actor_config.loss_scale_value, config.example_config.loss_scale_window
        self.scaler = LossScaler(loss_scale, window)
        self.draws = ms_resume.Draws(config.rl_config.seed, world.rank)
        self.prompts = data.read_all(dataset_file)
        self.cursor = ms_resume.Cursor(
            len(self.prompts),
            batch=config.rl_config.prompts_per_rank,
            seed=config.rl_config.seed,
            rank=world.rank,
            num_ranks=world.size,
            data={"prompts": self.prompts.tokens},
            name="prompts",
        )
        self.metrics = self._metrics()
        self._build_stages(self.held_out.tokens.shape[1])

    def run(self) -> bool:
        """Trains from the newest whole checkpoint, or from the base model, to (epochs, 0); False where it was asked to
        leave before."""
        with self._checkpointer() as self.checkpointer:
            first = self._start()
            self.rollouts = self.checkpointer.rollouts()
            finished = self._train(first)
        if finished:
            self._report_accuracy()
        return finished

    def _train(self, first: ms_resume.Position) -> bool:
        epochs = self.config.rl_config.epochs
        if first.epoch >= epochs and self.world.is_first:
            print(f"nothing left to train: the run ended at {first}", flush=True)
        for epoch in range(first.epoch, epochs):
            left = range(first.step if epoch == first.epoch else 0, self.cursor.steps_per_epoch)
            for indices, step in zip(self.cursor.epoch(), left):  # noqa: B905  # BREAK=data makes them differ
                if self.checkpointer.due(epoch, step, wishes=self._wishes):
                    self._save(epoch, step)
                if self.checkpointer.leaves(self._wishes):
                    return False
                self._train_step(epoch, step, self.prompts.rows(indices))
        if first.epoch < epochs:
            self._save(epochs, 0)
        return True

    def load_base_models(self, without: Collection[str] = ()) -> None:
        """Puts the base model into policy and reference, `without` those that have their values; each net gets its own
        copy of them."""
        actor, ref = self.request.base_models
        for role, net, model in (("policy", self.policy, actor), ("ref", self.ref, ref)):
            if role not in without:
                weights.place(net, weights.base_model_file(model))

    def _build_nets(self, prompt_length: int) -> None:
        ms.set_seed(self.config.rl_config.seed)
        example, actor = self.config.example_config, self.config.actor_config
        length = prompt_length + self.config.generate_config.sampling_config.max_tokens
        self.policy, self.ref = Decoder(example.model, length), Decoder(example.model, length)
        self.ref.set_grad(False)
        self.optimizer = adamw(self.policy, WarmUpThenDecay(actor.lr_schedule), actor.optimizer)

    def _build_stages(self, prompt_length: int) -> None:
        temperature = self.config.generate_config.sampling_config.temperature
        log_probs = grpo.log_prob_function(self.policy, prompt_length, temperature)
        self._sampler = Sampler(self.policy)
        self._scorer = Scorer(self.policy, self.ref, prompt_length, temperature)
        loss = grpo.loss_function(log_probs, self.config.rl_config)
        self._learner = Learner(loss, self.optimizer, self.scaler, self.world)
        self._verifiers = reward.verifiers(self.config.reward_config)

    def _dataset_file(self) -> Path:
        task = self.config.example_config.task
        default = self.save_dir / "data" / f"sums_{task.numbers}_{task.held_out}.mindrecord"
        path = Path(self.config.rl_config.dataset_file or default)
        if self.world.is_first:
            data.make_files(path, task)
        self.world.wait()
        return path

    @property
    def _rows(self) -> int:
        """What a step completes on one rank at a time: the sampler is compiled for it."""
        return self.config.rl_config.prompts_per_rank * self.config.rl_config.num_generations

    @property
    def save_dir(self) -> Path:
        return Path(self.config.actor_config.save)

    def _checkpointer(self) -> ms_resume.Checkpointer:
        """Everything that a later step depends on, handed over once."""
        rl, counters = self.config.rl_config, ("global_step", "samples_seen", "right_seen", "skipped_updates")
        return ms_resume.Checkpointer(
            self.save_dir,
            policy=self.policy,
            optimizer=self.optimizer,
            ref=self.ref,
            components=[
                ms_resume.Randomness(),
                self.draws,
                self.cursor,
                ms_resume.Fields("loss_scale", self.scaler, "scale", "good_steps"),
                ms_resume.Fields("metrics", self.metrics, *counters),
                self.metrics.log,
            ],
            steps_per_epoch=self.cursor.steps_per_epoch,
            config=asdict(self.config),
            model_config=asdict(self.config.example_config.model),
            parallel=self.request.parallel,
            leaving=self._leaving,
            schedule=self._schedule(),
            settings=self.request.mode.settings(keep_last=rl.save_max_ckpt_num, save_format=rl.save_ckpt_format),
        )

    def _schedule(self) -> ms_resume.Schedule:
        """The configuration's, unless `--checkpoint_interval` was given."""
        if self.request.mode.checkpoint_interval:
            return ms_resume.Schedule()
        return ms_resume.Schedule(every_steps=self.config.rl_config.save_ckpt_interval, each_epoch=True)

    def _start(self) -> ms_resume.Position:
        request = self.request
        if self._leaving is None:
            self.checkpointer.leave_on()
        ref = request.mode.pretrained is not None
        position = self.checkpointer.start_as(request.mode, source=request.source, ref_dir=request.ref_dir, ref=ref)
        self.load_base_models(without=self.checkpointer.loaded)
        self._wishes = self.checkpointer.wishes
        self._announce("start", position.epoch, position.step)
        return position

    def _metrics(self) -> Metrics:
        if not self.world.is_first:
            return Metrics(None)
        rl, directory = self.config.rl_config, self.save_dir / "metrics"
        board = Path(rl.tensorboard_dir) if rl.tensorboard_dir else directory / "tensorboard"
        return Metrics(directory, tensorboard=board if rl.tensorboard else None)

    def _save(self, epoch: int, step: int) -> None:
        """Behind the rollout of that step: what a step writes is written after the fence."""
        self._announce("save", epoch, step)
        self.checkpointer.begin(epoch, step, self._last)

    def _train_step(self, epoch: int, step: int, prompts: Prompts) -> None:
        self._announce("rollout", epoch, step)
        rolled = self._roll_out(prompts)
        experience = self._experience(rolled)
        self.checkpointer.fence()
        self._announce("update", epoch, step)
        for _ in range(self.config.rl_config.num_iterations):
            update = self._learner.step(experience)
            self.metrics.skipped_updates += update.overflow
        self._sync_ref()
        self._record((epoch, step), prompts.ids, update, float(rolled["rewards"].mean()), int(rolled["right"].sum()))

    def _roll_out(self, prompts: Prompts) -> Mapping[str, Any]:
        """Generated once, whatever dies before the next checkpoint: a resume gives back what was finished."""
        step = self.metrics.global_step
        return self.rollouts.take(step, lambda: self._generate(step, prompts), inputs={"prompts": prompts.tokens})

    def _generate(self, step: int, prompts: Prompts) -> dict[str, Any]:
        sampling, group = self.config.generate_config.sampling_config, self.config.rl_config.num_generations
        rows = prompts.repeated(group)
        generator = self.draws.generator(step, "sampling")
        gumbel = rollout.noise(generator, len(rows), sampling.max_tokens, sampling.temperature)
        rolled = self._sampler.complete(rows.tokens, gumbel)
        texts = reward.texts(rolled.completions)
        old, ref = self._scorer.score(rolled.tokens)
        return {
            "tokens": rolled.tokens,
            "mask": rolled.mask,
            "old_log_probs": old,
            "ref_log_probs": ref,
            "rewards": reward.rewards(texts, rows.answers, self._verifiers),
            "right": reward.right(texts, rows.answers),
        }

    def _experience(self, rolled: Mapping[str, Any]) -> Experience:
        gains = grpo.advantages(rolled["rewards"], self.config.rl_config.num_generations)
        names = ("tokens", "mask", "old_log_probs", "ref_log_probs")
        return Experience(advantages=Tensor(gains[:, None]), **{name: Tensor(rolled[name]) for name in names})

    def _sync_ref(self) -> None:
        ref = self.config.ref_config
        if ref.sync_ref_model and (self.metrics.global_step + 1) % ref.ref_model_sync_steps == 0:
            weights.copy_weights(self.policy, self.ref)

    def _record(self, at: tuple[int, int], ids: Ints, update: Update, mean_reward: float, right: int) -> None:
        """Numbers of all ranks in one message: each rank counts them alike, the first one writes."""
        own = [update.loss, mean_reward, update.kl, right, self.checkpointer.wish(), *ids.tolist()]
        everyone = self.world.gather(np.array(own, np.float32))
        figures = dict(zip(("loss", "reward", "kl"), everyone[:, :3].mean(axis=0).tolist(), strict=True))
        self._last, self._wishes = figures, float(everyone[:, 4].sum())
        all_ids = everyone[:, 5:].astype(int).ravel().tolist()
        samples, all_right = len(all_ids) * self.config.rl_config.num_generations, int(everyone[:, 3].sum())
        line = {"epoch": at[0], "step": at[1], **figures, "right": all_right / samples, "lr": update.lr}
        line |= {"loss_scale": self.scaler.scale, "prompts": all_ids, **self._looks(at)}
        self._show(self.metrics.record(line, samples=samples, right=all_right))

    def _looks(self, at: tuple[int, int]) -> dict[str, Any]:
        """What is seen of the policy every so many steps, by the first rank; nothing of it draws from what is saved."""
        done, example = self.metrics.global_step + 1, self.config.example_config
        found: dict[str, Any] = {}
        how = {"rows": self._rows, "max_tokens": self.config.generate_config.sampling_config.max_tokens}
        if self.world.is_first and due(done, example.eval_interval):
            self._announce("evaluation", *at)
            share = evaluate.accuracy(self._sampler, self.held_out, **how)
            found |= {"eval_sampled": share.sampled, "eval_greedy": share.greedy}
            print(f"after {done} steps: held-out accuracy {share.sampled:.4f}, greedy {share.greedy:.4f}", flush=True)
        if self.world.is_first and due(done, example.generate_interval):
            self._announce("generation", *at)
            found["samples"] = evaluate.samples(self._sampler, self.held_out.rows(np.arange(SHOWN)), **how)
            print(f"after {done} steps: {'  '.join(found['samples'])}", flush=True)
        return found

    def _show(self, line: dict[str, Any]) -> None:
        if self.world.is_first:
            figures = "  ".join(f"{name} {line[name]:.3f}" for name in ("reward", "right", "kl"))
            print(f"epoch {line['epoch']} step {line['step']:3d}  {figures}", flush=True)

    def _report_accuracy(self) -> None:
        """The policy beside the reference, which is the base model unless it was synchronised."""
        if not self.world.is_first:
            return
        print(f"rollouts: {self.rollouts.generated} generated, {self.rollouts.given_back} given back", flush=True)
        max_tokens = self.config.generate_config.sampling_config.max_tokens
        for name, sampler in (("reference", Sampler(self.ref)), ("policy", self._sampler)):
            found = evaluate.accuracy(sampler, self.held_out, rows=self._rows, max_tokens=max_tokens)
            figures = f"sampled {found.sampled:.4f}, greedy {found.greedy:.4f}"
            print(f"held-out accuracy of the {name}: {figures}", flush=True)

    def _announce(self, phase: str, epoch: int, step: int) -> None:
        self.checkpointer.phase(phase, epoch, step)
        for hook in self.on_phase:
            hook(phase, epoch, step)
