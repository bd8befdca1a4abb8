"""A decoder-only transformer as an engine runs it, with random weights: step times without a server.

Grouped-query attention over a static KV cache, SwiGLU, RMS norms, bfloat16 (float32 on the CPU); the shape of
Llama and Qwen (their config.json), cut to fit. Nothing is generated: times do not depend on the tokens.
Needs torch, which kvwatt does not depend on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

HEAD = 128
KV_SHARE = 4  # query heads to one KV head
FFN_RATIO = 3.5
VOCABULARY = 32_000


class Decoder:
    """`hidden` must be a multiple of 512."""

    out_of_memory = torch.OutOfMemoryError

    def __init__(self, device: str, hidden: int, layers: int) -> None:
        if hidden % (HEAD * KV_SHARE):
            raise ValueError(f"hidden = {hidden}: a multiple of {HEAD * KV_SHARE} is needed")
        if device == "cuda" and not torch.cuda.is_available():
            raise ImportError("torch sees no CUDA device")
        torch.manual_seed(0)
        self._device = torch.device(device)
        self._dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self._heads, self._kv_heads = hidden // HEAD, hidden // HEAD // KV_SHARE
        self._hidden, ffn = hidden, int(hidden * FFN_RATIO)
        wide = hidden + 2 * self._kv_heads * HEAD
        self._layers = [
            (self._random(hidden, wide), self._random(hidden, hidden), self._random(hidden, 2 * ffn),
             self._random(ffn, hidden))
            for _ in range(layers)
        ]  # fmt: skip
        self._head = self._random(hidden, VOCABULARY)
        tensors = [self._head, *(weight for layer in self._layers for weight in layer)]
        self.weights_bytes = sum(weight.numel() * weight.element_size() for weight in tensors)
        self.kv_bytes_per_token = 2 * layers * self._kv_heads * HEAD * self._head.element_size()
        self.name = f"random decoder, {layers} layers of {hidden}"
        self.software = f"torch {torch.__version__} on {device}"

    def decoding(self, batch: int, context_tokens: int) -> Callable[[], None]:
        """A step of `batch` sequences with so many tokens of context each."""
        keys = [self._cache(batch, context_tokens) for _ in self._layers]
        values = [self._cache(batch, context_tokens) for _ in self._layers]
        entering = self._random(batch, 1, self._hidden)
        return lambda: self._finish(self._forward(entering, keys, values, causal=False))

    def prefilling(self, tokens: int) -> Callable[[], None]:
        """A step that computes a whole prompt."""
        entering = self._random(1, tokens, self._hidden)
        return lambda: self._finish(self._forward(entering, None, None, causal=True))

    @torch.inference_mode()
    def _forward(
        self, entering: Tensor, keys: list[Tensor] | None, values: list[Tensor] | None, causal: bool
    ) -> Tensor:
        x = entering
        for index, (qkv, out, up, down) in enumerate(self._layers):
            q, k, v = self._projected(_normed(x) @ qkv)
            if keys is not None and values is not None:
                k, v = torch.cat((keys[index], k), dim=2), torch.cat((values[index], v), dim=2)
            seen = scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
            x = x + seen.transpose(1, 2).reshape(x.shape) @ out
            gate, value = (_normed(x) @ up).chunk(2, dim=-1)
            x = x + (silu(gate) * value) @ down
        return (_normed(x[:, -1]) @ self._head).argmax(dim=-1)

    def _projected(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, _ = qkv.shape
        heads = qkv.view(batch, length, self._heads + 2 * self._kv_heads, HEAD).transpose(1, 2)
        q, k, v = heads.split((self._heads, self._kv_heads, self._kv_heads), dim=1)
        return q, k, v

    def _cache(self, batch: int, tokens: int) -> Tensor:
        return self._random(batch, self._kv_heads, tokens, HEAD)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self._device, dtype=self._dtype) * 0.02

    def _finish(self, result: Tensor) -> None:
        """As an engine does that samples: the step is over when its tokens are on the host."""
        result.cpu()


def _normed(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6)
