"""Taggers: one text per image, in order, of the image that it belongs to; and what is refused before the run."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rewards import check_tagger
from rewards.base import TaggerError
from rewards.taggers.sections import ClipTaggerSection, PythonTaggerSection
from rewards.taggers.server import TaggerServer
from rl.types import U8, TagRequest, image_digest

Make = Callable[..., ClipTaggerSection]
TAGS = ("a tree", "sky", "water", "a red wall", "stone", "fur", "moon", "a face")


@pytest.fixture(scope="module")
def images() -> list[U8]:
    """Crops of three photographs, of three sizes; every array read-only, as Ray hands them out."""
    import skimage.data

    photos = (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea())
    sides = ((64, 64), (48, 80), (24, 40))
    found = []
    for photo, (height, width) in zip(photos, sides, strict=True):
        crop = np.ascontiguousarray(photo[80 : 80 + height, 100 : 100 + width].transpose(2, 0, 1))
        crop.flags.writeable = False
        found.append(crop)
    return found


@pytest.fixture
def user(tmp_path: Path) -> Callable[..., TaggerServer]:
    def make(code: str) -> TaggerServer:
        path = tmp_path / "tags.py"
        path.write_text(code)
        return TaggerServer("data", PythonTaggerSection(file=str(path)))

    return make


@pytest.fixture
def clip(tiny_clip_folder: Path, tmp_path: Path) -> Make:
    path = tmp_path / "tags.txt"
    path.write_text("\n".join(["", *TAGS, " "]))

    def make(**fields: Any) -> ClipTaggerSection:
        return ClipTaggerSection.model_validate({"path": str(tiny_clip_folder), "tags": str(path), **fields})

    return make


def requests(images: list[U8], first: int = 0) -> list[TagRequest]:
    return [TagRequest(first + k, image) for k, image in enumerate(images)]


def test_a_user_file_sees_the_images_and_its_texts_carry_their_digests(
    user: Callable[..., TaggerServer], images: list[U8]
) -> None:
    server = user(
        "def tag(images):\n"
        "    assert isinstance(images, list) and all(image.dtype == 'uint8' and len(image) == 3 for image in images)\n"
        "    return [f' side {image.shape[2]}\\n' for image in images]\n"
    )
    answers = server.tag(requests(images, first=5))
    assert [(answer.ordinal, answer.text) for answer in answers] == [(5, "side 64"), (6, "side 80"), (7, "side 40")]
    assert [answer.digest for answer in answers] == [image_digest(image) for image in images]
    assert len({answer.digest for answer in answers}) == 3 and all(answer.seconds >= 0 for answer in answers)
    assert server.tag([]) == []


def test_a_digest_is_of_shape_and_bytes() -> None:
    image = np.arange(3 * 4 * 6, dtype=np.uint8).reshape(3, 4, 6)
    assert image_digest(image) == image_digest(image.copy())
    assert image_digest(np.asfortranarray(image)) == image_digest(image)
    changed = image.copy()
    changed[2, 3, 5] ^= 1
    assert len({image_digest(one) for one in (image, changed, image.reshape(3, 6, 4))}) == 3


@pytest.mark.parametrize(
    "body, message, at_fault",
    [
        ("return ['a', 'b']", r"expected a list of 3 texts, one per image, got 2 of them", (5, 6, 7)),
        ("return 'abc'", r"expected a list of 3 texts, one per image, got str 'abc'", (5, 6, 7)),
        ("return None", r"got NoneType None", (5, 6, 7)),
        ("return ['a', '', 'b']", r"expected texts that are not empty, got image 1: ''", (6,)),
        ("return ['a', 'b', '  ']", r"not empty, got image 2: '  '", (7,)),
        ("return ['a', 2, None]", r"not empty, got image 1: 2, image 2: None", (6, 7)),
        ("return 1 / 0", r"ZeroDivisionError", (5, 6, 7)),
        ("images[0][:] = 0", r"read-only", (5, 6, 7)),
    ],
)
def test_mistakes_are_errors_never_prompts(
    user: Callable[..., TaggerServer], images: list[U8], body: str, message: str, at_fault: tuple[int, ...]
) -> None:
    server = user(f"def tag(images):\n    {body}\n")
    with pytest.raises(TaggerError, match=rf"tagger 'data' \(groups \[.*tags.py.*{message}") as caught:
        server.tag(requests(images, first=5))
    assert caught.value.ordinals == at_fault
    again = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(again, TaggerError) and str(again) == str(caught.value) and again.ordinals == at_fault


def test_texts_in_another_order_are_refused(user: Callable[..., TaggerServer], images: list[U8]) -> None:
    """Each text is of one of the images, and the count is right: only tagging one image alone tells."""
    server = user("def tag(images):\n    return [f'side {image.shape[2]}' for image in reversed(images)]\n")
    assert server.tag(requests(images[:1]))[0].text == "side 64"
    with pytest.raises(TaggerError, match="last of 3 images gets 'side 64' among the others and 'side 40' alone"):
        server.tag(requests(images))


def test_the_order_is_tested_once_by_one_more_call(user: Callable[..., TaggerServer], images: list[U8]) -> None:
    server = user(
        "calls = []\n"
        "def tag(images):\n"
        "    calls.append(len(images))\n"
        "    return [f'call {len(calls)}' if len(images) == 1 and len(calls) > 3 else str(i.shape) for i in images]\n"
    )
    for _ in range(3):
        server.tag(requests(images))
    assert server.tag(requests(images[:1]))[0].text == "call 5"


def test_load_errors(user: Callable[..., TaggerServer], tmp_path: Path) -> None:
    with pytest.raises(TaggerError, match=r"has no tag\(\); expected `def tag\(images\)`"):
        user("x = 1\n")
    with pytest.raises(TaggerError, match="tagger 'data': importing.*ModuleNotFoundError"):
        user("import no_such_module_anywhere\n")
    with pytest.raises(TaggerError, match="does not exist"):
        TaggerServer("data", PythonTaggerSection(file=str(tmp_path / "absent.py")))


@pytest.mark.parametrize("shape", [(1, 8, 8), (8, 8), (3, 0, 8)])
def test_what_is_no_image_is_refused(user: Callable[..., TaggerServer], shape: tuple[int, ...]) -> None:
    server = user("def tag(images): return ['x'] * len(images)\n")
    with pytest.raises(ValueError, match=r"image 4: expected uint8 \[3, H, W\], got uint8 \("):
        server.tag([TagRequest(4, np.zeros(shape, np.uint8))])
    with pytest.raises(ValueError, match="float32"):
        server.tag([TagRequest(4, np.zeros((3, 8, 8), np.float32))])  # type: ignore[arg-type]


def test_clip_probabilities_are_those_of_transformers_own_forward(
    clip: Make, tiny_clip_folder: Path, images: list[U8]
) -> None:
    """Image by image through the library's own processor and forward; ours embeds the tags once."""
    import torch
    from transformers import CLIPModel, CLIPProcessor

    from rewards.taggers.clip import ClipTagger

    model, processor = CLIPModel.from_pretrained(tiny_clip_folder), CLIPProcessor.from_pretrained(tiny_clip_folder)
    texts = [f"a photo of {tag}" for tag in TAGS]
    expected = []
    for image in images:
        picture = Image.fromarray(image.transpose(1, 2, 0))
        inputs = processor(text=texts, images=picture, return_tensors="pt", padding=True)
        with torch.no_grad():
            expected.append(model(**inputs).logits_per_image.softmax(dim=1)[0])
    tagger = ClipTagger("data", clip(top_k=3))
    torch.testing.assert_close(tagger.probabilities(images), torch.stack(expected), atol=1e-5, rtol=1e-4)

    chosen = [", ".join(TAGS[i] for i in row.argsort(descending=True)[:3].tolist()) for row in expected]
    assert tagger.tag(images) == chosen
    assert len(set(chosen)) == 3 and all(len(text.split(", ")) == 3 for text in chosen)
    assert tagger.tag(images[::-1]) == chosen[::-1]


def test_the_threshold_cuts_the_tail_and_never_the_head(clip: Make, images: list[U8]) -> None:
    """Every kept tag but the first reaches the threshold, every other one of the best top_k is under it."""
    from rewards.taggers.clip import ClipTagger

    threshold = 0.15
    tagger = ClipTagger("data", clip(top_k=5, threshold=threshold))
    lengths = set()
    for text, row in zip(tagger.tag(images), tagger.probabilities(images), strict=True):
        likely = sorted(row.tolist(), reverse=True)[:5]
        kept = [float(row[TAGS.index(tag)]) for tag in text.split(", ")]
        assert kept == likely[: len(kept)]
        assert len(kept) == max(1, sum(p >= threshold for p in likely))
        lengths.add(len(kept))
    assert len(lengths) > 1
    only = ClipTagger("data", clip(threshold=0.999999)).tag(images)
    assert all(text in TAGS for text in only)


def test_the_template_reaches_the_text_encoder(clip: Make, images: list[U8]) -> None:
    from rewards.taggers.clip import ClipTagger

    one, other = (ClipTagger("data", clip(template=t)).probabilities(images) for t in ("{}", "no {} at all"))
    assert float((one - other).abs().max()) > 0.01


def test_a_tag_that_the_text_encoder_would_cut_is_refused(clip: Make, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("sky\nan endlessly long tag\n")
    with pytest.raises(TaggerError, match="at most 24 tokens a tag, got .* of 'a photo of an endlessly long tag'"):
        TaggerServer("data", clip(tags=str(tmp_path / "long.txt")))


def test_check_accepts_what_works(clip: Make, tmp_path: Path) -> None:
    check_tagger("data", clip())
    (tmp_path / "mine.py").write_text("raise SystemExit\ndef tag(images, size=384): pass\n")
    check_tagger("data", PythonTaggerSection(file=str(tmp_path / "mine.py")))


@pytest.mark.parametrize(
    "code, message",
    [
        (None, "eval.data.tagger: file '.*mine.py' does not exist"),
        ("def tags(images): pass", r"has no top-level tag\(\); expected `def tag\(images\)`"),
        ("def tag(): pass", r"line 1: expected `def tag\(images\)`, got `def tag\(\)`"),
        ("def tag(:", "line 1"),
    ],
)
def test_check_refuses_user_files(tmp_path: Path, code: str | None, message: str) -> None:
    path = tmp_path / "mine.py"
    if code is not None:
        path.write_text(code)
    with pytest.raises(ValueError, match=message):
        check_tagger("eval.data", PythonTaggerSection(file=str(path)))


def test_check_refuses_what_is_no_clip_folder(clip: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.tagger: path: .*nowhere lacks config.json, processor_config.json or"):
        check_tagger("data", clip(path=str(tmp_path / "nowhere")))
    folder = tmp_path / "other"
    shutil.copytree(clip().path, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(ValueError, match="expected model_type 'clip' in .*, got 'siglip'"):
        check_tagger("data", clip(path=str(folder)))


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "tags: file '.*list.txt' does not exist"),
        ("\n \n", "expected one tag per line in .*list.txt, found none"),
        ("sky\nsea\n sky \n", r"expected each tag once in .*list.txt, found more of \['sky'\]"),
    ],
)
def test_check_refuses_tag_lists(clip: Make, tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "list.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        check_tagger("data", clip(tags=str(path)))
