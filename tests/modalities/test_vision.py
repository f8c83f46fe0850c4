import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from data2vec.batch import Batch
from data2vec.data.augment import RandAugment, rand_augment, random_erasing
from data2vec.data.image import center_crop, color_jitter, decode_image, random_crop_box, resize
from data2vec.data.sources.open_dataset import open_dataset
from data2vec.errors import CorruptExample
from data2vec.modalities.vision import PatchEmbedding, Vision, VisionData, VisionExamples, VisionSettings, augment_image


def array(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def load(content, name=None):
    return decode_image({"bytes": content, "path": name})


def test_jpeg_equals_pillow(picture, encoded):
    content = encoded(picture(), "JPEG")
    with Image.open(io.BytesIO(content)) as expected:
        assert torch.equal(load(content), array(expected))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_decode_image_of_every_format(picture, encoded, form):
    image = picture(noise=0)
    got = load(encoded(image, form, **({"lossless": True} if form == "WEBP" else {})))
    assert got.shape == (3, 40, 60)
    difference = (got.float() - array(image).float()).abs()
    assert difference.mean() < (20 if form == "GIF" else 1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F"])
def test_decode_image_of_every_mode_is_rgb(picture, encoded, mode):
    image = picture(noise=0)
    grey = np.array(image.convert("L"))
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "I":
        image = Image.fromarray(grey.astype(np.int32) * 100000)
    elif mode == "F":
        image = Image.fromarray(grey.astype(np.float32) / 255)
    else:
        image = image.convert(mode)
    form = {"CMYK": "JPEG", "I": "TIFF", "F": "TIFF"}.get(mode, "PNG")
    got = load(encoded(image, form))
    assert got.shape == (3, 40, 60)
    assert got.dtype == torch.uint8
    if mode in ("I;16", "I", "F"):
        low, high = (0, 255) if mode == "I;16" else (grey.min(), grey.max())
        expected = torch.from_numpy((grey - low) / (high - low) * 255).expand(3, -1, -1)
        assert (got - expected).abs().max() <= 1
    else:
        assert (got.float() - array(image.convert("RGB")).float()).abs().mean() < (6 if form == "JPEG" else 1e-6)


def test_decode_image_of_a_palette_with_transparency(picture, encoded):
    image = picture(noise=0).convert("P")
    assert load(encoded(image, "PNG", transparency=bytes(range(256)))).shape == (3, 40, 60)


def test_decode_image_applies_exif_rotation(picture, encoded):
    image = picture(noise=0)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(image, "JPEG", exif=exif, quality=95)
    got = load(content)
    assert got.shape == (3, 60, 40)
    upright = array(image.transpose(Image.Transpose.ROTATE_270)).float()
    assert (got.float() - upright).abs().mean() < 4


def test_decode_image_without_simplejpeg_is_identical(picture, encoded, monkeypatch):
    content = encoded(picture().convert("L"), "JPEG")
    fast = load(content)
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert torch.equal(load(content), fast)


def test_corrupt_images_raise_corrupt_example(picture, encoded, tmp_path, monkeypatch):
    whole = encoded(picture(), "JPEG")
    with pytest.raises(CorruptExample, match=r"cut\.jpg: "):
        load(whole[: len(whole) // 2], "cut.jpg")
    png = encoded(picture(), "PNG")
    with pytest.raises(CorruptExample, match=r"cut\.png: "):
        load(png[: len(png) // 2], "cut.png")
    with pytest.raises(CorruptExample, match=r"words\.png: not an image"):
        load(b"words", "words.png")
    with pytest.raises(CorruptExample, match=r"gone\.png: no such file"):
        load(None, str(tmp_path / "gone.png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for content in (whole, png):
        with pytest.raises(CorruptExample, match="possible decompression bomb"):
            load(content, "bomb")


def test_center_crop_of_a_strip_equals_that_of_the_whole_and_needs_little_memory(picture):
    """A strip is cut before it is enlarged: as a whole, a line of 30,000 pixels would take gigabytes."""
    for width, height in ((60, 2), (2, 60), (101, 3), (40, 30)):
        image = array(picture(width, height))
        scale = 37 / min(width, height)
        whole = resize(image, (int(height * scale + 1e-6), int(width * scale + 1e-6)))
        top, left = (round((size - 32) / 2) for size in whole.shape[1:])
        difference = center_crop(image, 32).int() - whole[:, top : top + 32, left : left + 32].int()
        assert difference.abs().max() <= (8 if max(width, height) > 60 else 0), "by less than a pixel, of the rounded size"
    for shape in ((1, 30000), (30000, 1), (2, 30001)):
        line = torch.arange(shape[0] * shape[1]).remainder(251).to(torch.uint8).view(1, *shape).repeat(3, 1, 1)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            assert center_crop(line, 224).shape == (3, 224, 224)
        assert max(event.self_cpu_memory_usage for event in profile.key_averages()) < 50e6


@pytest.mark.parametrize("size", [(224, 224), (17, 31), (100, 40)])
def test_resize_agrees_with_pillow(picture, size):
    image = picture(90, 70)
    expected = array(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    assert (resize(array(image), size).int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_color_jitter_agrees_with_pillow(picture, order):
    image = picture()
    factors = (1.3, 0.7, 1.35)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    expected = image
    for kind in order:
        expected = enhancers[kind](expected).enhance(factors[kind])
    got = color_jitter(array(image), factors, order, array(image))
    assert (got.int() - array(expected).int()).abs().max() <= 4  # Pillow rounds down after each


def test_crop_before_jitter_is_close_to_jitter_before_crop(picture):
    """The reference order, done by Pillow with the same draws."""
    settings = VisionData(flip=1.0)
    for seed in range(5):
        image = picture(160, 120, seed)
        rng = np.random.default_rng(seed)
        top, left, height, width = random_crop_box(120, 160, settings.crop_scale, settings.crop_ratio, rng)
        rng.random()
        factors, order = 1 + 0.4 * rng.uniform(-1, 1, 3), rng.permutation(3)
        expected = image
        for kind in order:
            expected = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[kind](expected).enhance(
                factors[kind]
            )
        box = (160 - left - width, top, 160 - left, top + height)
        expected = ImageOps.mirror(expected).resize((64, 64), Image.Resampling.BICUBIC, box=box)
        got = augment_image(array(image), settings, 64, np.random.default_rng(seed))
        assert (got.float() - array(expected).float()).abs().mean() < 2.5


def test_random_crops_have_the_stated_areas_and_ratios():
    settings = VisionData()
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop_box(375, 500, settings.crop_scale, settings.crop_ratio, rng) for _ in range(3000)])
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 375).all()
    assert (left + width <= 500).all()
    area = height * width / (375 * 500)
    assert area.min() < 0.1
    assert area.max() > 0.9
    assert (width / height).min() > 0.7
    assert (width / height).max() < 1.4
    assert abs(np.log(width / height)[area < 0.3].mean()) < 0.03  # log-uniform where nothing limits it
    assert random_crop_box(10, 1000, settings.crop_scale, settings.crop_ratio, rng)[2:] == (10, 13)


def test_augment_image_with_flip_only(picture):
    image = array(picture(64, 64))
    plain = VisionData(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), color_jitter=0.0, flip=0.0)
    assert torch.equal(augment_image(image, plain, 64, np.random.default_rng(0)), image)
    flipped = augment_image(image, plain.model_copy(update={"flip": 1.0}), 64, np.random.default_rng(0))
    assert torch.equal(flipped, image.flip(2))


def test_center_crop_equals_pillow(picture):
    image = picture(300, 200)
    resized = image.resize((384, 256), Image.Resampling.BICUBIC)
    expected = array(resized.crop((80, 16, 304, 240)))
    assert (center_crop(array(image), 224).int() - expected.int()).abs().max() <= 1
    assert center_crop(array(picture(1, 1)), 8).shape == (3, 8, 8)
    assert center_crop(array(picture(9, 7)), 5).shape == (3, 5, 5)


def test_vision_examples_are_augmented_by_seed(picture, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        picture(seed=len(name)).save(tmp_path / name / "1.jpg")
    examples = VisionExamples(open_dataset(str(tmp_path), "image"), VisionData(), 32)
    assert list(examples.costs) == [1, 1]
    assert examples.label(1, "label") == "dog"
    one, same = (examples.load(0, None, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(one, same)
    assert not torch.equal(one, examples.load(0, None, np.random.default_rng(4)))
    batch = Vision(VisionSettings(image=32, patch=8), VisionData()).collate([one, same])
    assert batch.input.shape == (2, 3, 32, 32)
    assert batch.input.dtype == torch.uint8


def test_vision_examples_with_fine_tuning_augmentation(picture, tmp_path):
    picture().save(tmp_path / "1.png")
    rows = open_dataset(str(tmp_path), "image")
    plain = VisionExamples(rows, VisionData(), 32).load(0, None, np.random.default_rng(3))
    data = VisionData(rand_augment=RandAugment(ops=2), random_erasing=0.9)
    examples = VisionExamples(rows, data, 32, (0.1, 0.2, 0.3), (0.01, 0.01, 0.01))
    changed = examples.load(0, None, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    expected = augment_image(decode_image(rows[0]["image"]), data, 32, rng)
    assert torch.equal(expected, plain)  # the same crop, as long as nothing follows it
    expected = rand_augment(expected, data.rand_augment, examples.mean, rng)
    expected = random_erasing(expected, 0.9, examples.mean, examples.std, rng)
    assert torch.equal(changed, expected)
    assert not torch.equal(changed, plain)
    assert torch.equal(examples.load(0), VisionExamples(rows, VisionData(), 32).load(0))  # never in evaluation


@pytest.mark.parametrize("patch", [2, 3, 4, 6])
def test_conv_stem_depends_on_its_patch_alone(patch):
    torch.manual_seed(0)
    stem = PatchEmbedding(VisionSettings(image=2 * patch, patch=patch, stem="conv"), 16)
    image = torch.randn(1, 3, 2 * patch, 2 * patch, requires_grad=True)
    vectors = stem(Batch(image))[0]
    assert vectors.shape == (1, 4, 16)
    for index, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        gradient = torch.autograd.grad(vectors[0, index].square().sum(), image, retain_graph=True)[0][0].abs().sum(0)
        inside = gradient[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        assert (inside > 0).all()
        assert gradient.sum().item() == pytest.approx(inside.sum().item())


def test_conv_stem_equals_linear_layers_on_pixels_in_blocks():
    """4 x 4 patches: 2 x 2 pixels to half the width, then 2 x 2 of these to the width."""
    torch.manual_seed(0)
    embedding, image = PatchEmbedding(VisionSettings(image=4, patch=4, stem="conv"), 16), torch.randn(1, 3, 4, 4)
    y = image[0]
    for conv in embedding.stem.convs:
        assert conv.kernel_size == conv.stride == (2, 2)
        weight, side = conv.weight.flatten(1), y.shape[1] // 2
        blocks = [y[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten() for i in range(side) for j in range(side)]
        z = torch.stack([torch.nn.functional.layer_norm(weight @ b + conv.bias, (len(weight),)) for b in blocks])
        y = torch.nn.functional.gelu(z).T.reshape(-1, side, side)
    assert [len(conv.weight) for conv in embedding.stem.convs] == [8, 16]
    torch.testing.assert_close(embedding(Batch(image))[0][0, 0], embedding.project(y.flatten()))
