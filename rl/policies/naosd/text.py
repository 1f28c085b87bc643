"""Prompt -> CLIP text embedding, each prompt encoded once."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from rl.errors import InputError
from rl.policies.naosd.section import NAOSDSection

MAX_CACHED = 4096


class CachedPrompt:
    """One embedding `[L, D]` for every image, for presets without a text encoder."""

    def __init__(self, embeds: Tensor, source: Path, negative: Tensor | None = None) -> None:
        self._embeds = embeds[None]
        self._negative = negative
        self._source = source

    def __call__(self, prompt: str) -> Tensor:
        """`[1, L, D]`."""
        if prompt:
            raise InputError(f"prompt: got '{prompt}', but the policy has one cached embedding, {self._source}")
        return self._embeds

    def negative(self, prompt: str) -> Tensor:
        """`[1, L, D]`, the negative embedding of classifier-free guidance."""
        if self._negative is None or prompt:
            raise InputError(
                f"negative_prompt: expected an empty prompt and negative_prompt_embeds in {self._source}, got "
                f"'{prompt}' and {'none' if self._negative is None else 'an embedding'}"
            )
        return self._negative[None]


class ClipPrompts:
    """CLIP's text encoder, kept on the CPU; each distinct prompt is encoded once."""

    def __init__(self, tokenizer: CLIPTokenizer, encoder: CLIPTextModel) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder.requires_grad_(False)
        self._encoder.train(False)
        self._cache: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, prompt: str) -> Tensor:
        """`[1, L, D]`, padded or truncated to the tokenizer's length, as in Stable Diffusion."""
        if prompt not in self._cache:
            if len(self._cache) >= MAX_CACHED:
                self._cache.clear()
            tokens = self._tokenizer(
                prompt,
                max_length=self._tokenizer.model_max_length,
                padding="max_length",
                truncation=True,
                return_tensors="pt",
            )
            self._cache[prompt] = self._encoder(tokens.input_ids)[0]
        return self._cache[prompt]

    def negative(self, prompt: str) -> Tensor:
        """`[1, L, D]`, the negative embedding of classifier-free guidance."""
        return self(prompt)


def load_prompts(folder: Path, section: NAOSDSection, width: int) -> CachedPrompt | ClipPrompts:
    """A cached embedding if there is one, else the folder's tokenizer/ and text_encoder/."""
    file = section.prompt_file(folder)
    if file.is_file():
        tensors = load_file(file)
        embeds = tensors.get("prompt_embeds")
        if embeds is None or embeds.ndim != 2 or embeds.shape[1] != width:
            got = "no such tensor" if embeds is None else tuple(embeds.shape)
            raise InputError(f"{file}: expected prompt_embeds [L, {width}], got {got}")
        return CachedPrompt(embeds, file, tensors.get("negative_prompt_embeds"))
    encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    if encoder.config.hidden_size != width:
        raise InputError(f"{folder}/text_encoder: expected width {width} as in unet/, got {encoder.config.hidden_size}")
    return ClipPrompts(CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"), encoder)
