"""Trainings of a few steps on the smallest models, offline."""

from pathlib import Path
from typing import Any

import torch
from helpers.small_models import small_model
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

LENGTH = 6


def rows(count: int = 12, length: int = LENGTH) -> list[dict[str, torch.Tensor]]:
    """Returns samples whose tokens all differ."""
    numbers = [torch.arange(length) * 7 + 5 * i + 3 for i in range(count)]
    return [{"input_ids": n % 60 + 3, "labels": n % 60 + 3} for n in numbers]


def trainer_of(
    directory: Path, callbacks: Any, model: Any = None, kind: type = Trainer, **given: Any
) -> Any:
    """Returns a silent Trainer of a small model; SGD, so that a step is the gradient itself."""
    data = given.pop("data", rows())
    options = {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    arguments = TrainingArguments(output_dir=str(directory), **(options | given))
    model = small_model("llama", num_hidden_layers=2) if model is None else model
    trainer = kind(
        model=model, args=arguments, train_dataset=data, eval_dataset=data, callbacks=callbacks
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def hooks_of(model: torch.nn.Module) -> int:
    """Returns how many hooks of ours hang on a model; trainers leave some of their own."""
    hooks = (
        h
        for m in model.modules()
        for d in (m._forward_hooks, m._forward_pre_hooks)
        for h in d.values()
    )
    return sum(getattr(hook, "__module__", "").startswith("noisescope.") for hook in hooks)


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns copies of all weights."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}
