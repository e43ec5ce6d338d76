"""The engine: it builds model and optimizer in `initialize`; here without any FSDP."""

from types import SimpleNamespace

import torch

from ..base import BaseEngine


class FSDPEngine(BaseEngine):
    def __init__(self, build, model_type="language_model", forward_only=False):
        self.model_config = SimpleNamespace(model_type=model_type)
        self.engine_config = SimpleNamespace(forward_only=forward_only)
        self.rank, self.build, self.ran = 3, build, []

    def initialize(self):
        self.module, self.optimizer = self.build(), None
        if not self.engine_config.forward_only:
            self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-3)

    def load_checkpoint(self, local_path, hdfs_path=None, del_local_after_load=True, **kwargs):
        self.optimizer.load_state_dict(torch.load(local_path, weights_only=True))

    def optimizer_zero_grad(self):
        self.optimizer.zero_grad()

    def optimizer_step(self):
        self.optimizer.step()
        return 1.0

    def forward_backward_batch(self, data, loss_function, forward_only=False):
        losses = []
        for micro_batch in data:
            logits = self.module(input_ids=micro_batch, use_cache=False).logits
            self.ran.append(logits.detach())
            losses.append(loss_function(logits) if loss_function else logits.mean())
            if not forward_only:
                losses[-1].backward()
        return {"loss": [loss.item() for loss in losses], "metrics": {}}
