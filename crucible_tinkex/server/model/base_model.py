"""The base with its multi-LoRA layers: packed tokens in, hidden states and log-probabilities out.

Guarantees: the weights never change; nothing here knows of requests, queues or the network. What
goes in may lie in the CPU's memory; what comes out lies on the model's device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from crucible_tinkex.server import bases
from crucible_tinkex.server.model import attention
from crucible_tinkex.server.model.attention import Plan
from crucible_tinkex.server.model.head import Head
from crucible_tinkex.server.model.lora import (
    Layout,
    PassContext,
    Slot,
    Stack,
    initial_weights,
    wrap_linears,
)
from crucible_tinkex.server.operations import HEAD, BaseInfo, LoraSpec

MIN_TOKENS = 16
"""Passes of fewer tokens are filled up, because small GEMMs use other kernels."""


class BaseModel:
    """One frozen base, shared by all adapters."""

    def __init__(
        self, base: bases.Base, dtype: torch.dtype, device: torch.device | None = None
    ) -> None:
        transformers_logging.disable_progress_bar()
        self.device = device or torch.device("cpu")
        causal = bases.load_model(base, dtype).to(self.device)
        causal.config._attn_implementation = attention.NAME
        self.base = base
        self.dtype = dtype
        self.config = causal.config
        self._body = causal.model
        self._context = PassContext()
        weight = causal.get_output_embeddings().weight
        self.head = Head(weight)
        self.slots = wrap_linears(self._body, self._context)
        self.slots.append(Slot(HEAD, weight.shape[1], weight.shape[0]))
        config = causal.config
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        heads = config.num_hidden_layers * config.num_key_value_heads
        self.cache_bytes: int = 2 * heads * width * dtype.itemsize
        """Keys and values of one token."""
        wide = 4 * config.intermediate_size + 10 * config.hidden_size
        self.kept_bytes: int = config.num_hidden_layers * wide * dtype.itemsize
        """About what backward needs of one token: in each layer the four of the MLP's width, and
        those of the attention and the norms. 0.71 MB for SmolLM2 in bf16, where 0.77 are measured
        with `saved_tensors_hooks`."""
        self._layouts: dict[tuple[int, bool, bool, bool], Layout] = {}
        self.info = BaseInfo(
            name=base.name,
            tokenizer_id=str(base.tokenizer_folder),
            vocab_size=int(weight.shape[0]),
            max_length=bases.max_length(causal.config),
        )

    def layout(self, spec: LoraSpec) -> Layout:
        key = (spec.rank, spec.train_attn, spec.train_mlp, spec.train_unembed)
        if key not in self._layouts:
            self._layouts[key] = Layout(self.slots, spec)
        return self._layouts[key]

    def initial_weights(self, spec: LoraSpec) -> Tensor:
        return initial_weights(self.layout(spec), spec).to(self.device)

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        plan: Plan,
        stacks: Sequence[Stack],
        *,
        backward: bool,
    ) -> Tensor:
        """[M] tokens to [M, d] after the last norm; `backward`, if that comes next, needs to be
        told."""
        context = self._context
        context.stacks = stacks
        context.tile = plan.tile
        try:
            if backward:
                context.anchor = torch.zeros(1, device=self.device, requires_grad=True)
            with torch.set_grad_enabled(backward):
                out = self._body(
                    input_ids=tokens[None].to(self.device),
                    position_ids=positions[None].to(self.device),
                    use_cache=False,
                    plan=plan,
                )
        finally:
            context.stacks, context.anchor = (), None  # copies of weights, large as the adapters
        state: Tensor = out.last_hidden_state[0]
        return state

    def backward(self, hidden: Tensor, grad: Tensor) -> None:
        """Put what `grad` [M, d] means for the adapters of the pass into its stacks; they
        `collect` it."""
        hidden.backward(grad)  # type: ignore[no-untyped-call]
