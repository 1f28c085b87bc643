"""Zero-shot tags from CLIP (Radford et al., arXiv 2103.00020): which texts in a list match an image?

    p_t = softmax over tags of ( exp(logit_scale) cos( f(image), g(template of tag t) ) )

Left out: prompt ensembles, and calibration of p: it is a share among the listed tags, not a detection.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPProcessor

from rewards.base import TaggerError, naming
from rewards.taggers.sections import ClipTaggerSection, read_tags
from rl.types import U8

TEXT_BATCH = 256


class ClipTagger:
    """The most likely tags of each image, joined by ", ".

    Args:
        name: the data section, for messages.
        section: `path`, `tags`, `template`, `top_k`, `threshold` and `device` are read.

    Raises:
        TaggerError: the model could not be loaded, or a tag does not fit its text encoder.
    """

    def __init__(self, name: str, section: ClipTaggerSection) -> None:
        self.name = name
        self._section = section
        self._device = torch.device(section.device)
        with naming(name, f"loading CLIP from {section.path}", TaggerError), torch.no_grad():
            self._tags = read_tags(Path(section.tags).expanduser())
            folder = Path(section.path).expanduser()
            model: CLIPModel = CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
            self._model = model.to(self._device).eval()  # type: ignore[arg-type]  # transformers' stub lacks devices
            self._processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
            texts = [section.template.replace("{}", tag) for tag in self._tags]
            parts = [texts[i : i + TEXT_BATCH] for i in range(0, len(texts), TEXT_BATCH)]
            self._text = torch.cat([self._embed_texts(part) for part in parts])

    def tag(self, images: Sequence[U8]) -> list[str]:
        """One text per image `[3, H, W]`: its `top_k` most likely tags, most likely first.

        Raises:
            TaggerError: the model failed.
        """
        if not images:
            return []
        with naming(self.name, "tagging with CLIP", TaggerError):
            values, order = self.probabilities(images).sort(dim=1, descending=True, stable=True)
            keep = values[:, : self._section.top_k] >= self._section.threshold
            keep[:, 0] = True  # a prompt is never empty
            return [
                ", ".join(self._tags[index] for index in row[: self._section.top_k][kept].tolist())
                for row, kept in zip(order, keep, strict=True)
            ]

    @torch.no_grad()
    def probabilities(self, images: Sequence[U8]) -> Tensor:
        """`[n, T]` over the tags in the file's order, on the CPU."""
        pixels = self._processor.image_processor(
            images=[np.array(image) for image in images], return_tensors="pt", input_data_format="channels_first"
        )["pixel_values"]
        # instead of get_image_features(), which returns a tensor in transformers 4 and an object in 5
        pooled = self._model.vision_model(pixel_values=pixels.to(self._device)).pooler_output
        seen = normalize(self._model.visual_projection(pooled), dim=-1)
        logits: Tensor = self._model.logit_scale.exp() * seen @ self._text.T
        return logits.softmax(dim=1).cpu()

    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self._processor.tokenizer(list(texts), padding=True, return_tensors="pt")
        longest, most = tokens.input_ids.shape[1], self._model.config.text_config.max_position_embeddings
        if longest > most:
            at = int(tokens.attention_mask.sum(dim=1).argmax())
            raise TaggerError(self.name, f"tags: expected at most {most} tokens a tag, got {longest} of '{texts[at]}'")
        pooled = self._model.text_model(**tokens.to(self._device)).pooler_output
        return normalize(self._model.text_projection(pooled), dim=-1)
