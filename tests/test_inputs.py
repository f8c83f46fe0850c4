import copy
import io
import pickle
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import data2vec
from data2vec.data.tokenizer import save_tokenizer, train_tokenizer
from data2vec.errors import UserError
from data2vec.model import Model, blank_model
from data2vec.recipe.loading import load_recipe

SMALL = {"encoder.width": 32, "encoder.ffn_width": 64, "encoder.layers": 2, "encoder.heads": 2}
WAVE = (0.1 * np.random.default_rng(0).standard_normal(8000)).astype(np.float32)
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
TEXT = "a great movie"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer([TEXT, "and a small text about nothing"] * 5, 300), folder)
    torch.manual_seed(0)
    text = {"modality.vocab_size": 300, "data.tokenizer": str(folder)}
    return {
        "speech": blank_model(load_recipe("speech/v2-tiny", SMALL)),
        "vision": blank_model(load_recipe("vision/v2-tiny", SMALL)),
        "text": blank_model(load_recipe("text/v1-tiny", SMALL | text)),
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    soundfile.write(folder / "a.wav", WAVE, 16000, subtype="FLOAT")
    soundfile.write(folder / "8k.wav", WAVE[::2], 8000, subtype="FLOAT")
    Image.fromarray(PIXELS).save(folder / "a.png")
    (folder / "a.txt").write_text(TEXT)
    return folder


def same(model: Model, given: Any, expected: Any) -> None:
    found, wanted = model.features(given), model.features(expected)
    assert found.lengths.tolist() == wanted.lengths.tolist()
    torch.testing.assert_close(found.hidden, wanted.hidden, atol=1e-5, rtol=0)


def test_audio_in_every_form_has_the_features_of_its_file(models: dict[str, Model], files: Path) -> None:
    path = files / "a.wav"
    signal = {"array": WAVE, "sampling_rate": 16000}
    content = {"bytes": path.read_bytes(), "path": None}
    forms = [path, str(path), WAVE, torch.tensor(WAVE), WAVE.tolist(), WAVE[None], WAVE[:, None], (WAVE, 16000), (16000, WAVE)]
    forms += [signal, content, path.read_bytes(), {"audio": signal, "label": 3}, {"audio": content}, {"audio": str(path)}]
    forms += [memoryview(WAVE), WAVE[::-1].copy()[::-1], WAVE.astype(">f4"), torch.tensor(WAVE, requires_grad=True)]
    for form in forms:
        same(models["speech"], form, [path])
        same(models["speech"], [form, form], [path, path])
    same(models["speech"], (form for form in forms[:3]), [path] * 3)
    same(models["speech"], (WAVE[::2], 8000), [files / "8k.wav"])
    same(models["speech"], {"array": WAVE[::2].tolist(), "sampling_rate": 8000}, [files / "8k.wav"])


def test_pictures_in_every_form_have_the_features_of_their_file(models: dict[str, Model], files: Path) -> None:
    path, picture = files / "a.png", Image.fromarray(PIXELS)
    forms = [path, str(path), PIXELS, picture, picture.convert("RGBA"), torch.tensor(PIXELS).permute(2, 0, 1), PIXELS / 255]
    forms += [path.read_bytes(), {"image": picture}, {"image": {"bytes": path.read_bytes(), "path": None}, "label": 1}]
    for form in forms:
        same(models["vision"], form, [path])
        same(models["vision"], [form, form], [path, path])
    same(models["vision"], np.stack([PIXELS, PIXELS]), [path, path])
    same(models["vision"], PIXELS[:, :, 0], [Image.fromarray(PIXELS[:, :, 0])])


def test_a_text_is_one_input_and_a_list_of_ints_too(models: dict[str, Model], files: Path) -> None:
    model = models["text"]
    for form in (TEXT, files / "a.txt", {"text": TEXT}, {"text": TEXT, "label": 0}, TEXT.encode()):
        same(model, form, [TEXT])
        same(model, [form, "nothing"], [TEXT, "nothing"])
    assert model.features(TEXT).hidden.shape[1] == 1
    ids = [0, 5, 6, 2]
    for form in (ids, tuple(ids), np.array(ids), np.array(ids, np.uint8), torch.tensor(ids), np.array(ids, ">i4")):
        same(model, form, [ids])
        assert model.features(form).lengths.tolist() == [4]
    same(model, np.array([ids, ids]), [ids, ids])


@pytest.mark.parametrize(
    ("kind", "given", "reason"),
    [
        ("speech", [], "inputs: is empty; give at least one"),
        ("speech", 5, r"inputs: of type int; give a list of these: a path, samples \(S,\) at 16 kHz, a pair"),
        ("speech", None, "inputs: of type NoneType; give a list"),
        ("speech", {"a.wav", "b.wav"}, "inputs: of type set; give a list"),
        ("speech", io.BytesIO(b""), "inputs: of type BytesIO; give a list"),
        (
            "speech",
            np.zeros((2, 800)),
            r"inputs: an array of shape \(2, 800\) may be several clips, or several channels",
        ),
        ("speech", [None], "features: an unnamed clip: neither content nor a path is given"),
        ("speech", [io.BytesIO(b"")], "input 1: of type BytesIO; give a path, samples"),
        ("speech", [WAVE, np.zeros((2, 8000))], r"features: input 2: audio of shape \(2, 8000\)"),
        ("speech", [WAVE > 0], "features: input 1: bool samples"),
        ("speech", [{"label": 3}], "input 1: a row without column 'audio', only label"),
        ("speech", [{"array": WAVE}], "features: input 1: a sampling rate of None"),
        ("speech", ["typo.wav"], "features: typo.wav: no such file"),
        ("speech", "typo.wav", "features: typo.wav: no such file"),
        ("vision", [PIXELS.tolist()], "input 1: of type list; give a path, a Pillow image, an array"),
        ("vision", PIXELS.astype(np.float32), "features: input 1: an image of float32 from 0 to 255"),
        ("vision", [None], "features: an unnamed image: neither content nor a path is given"),
        ("text", [["a", "b"]], "input 1: must be a string, a Path, token ids, or a row with column text"),
        ("text", [[0.5]], "input 1: must be"),
        ("text", [[True, False]], "input 1: must be"),
        ("text", [None], "features: a row: not UTF-8, or without a text"),
        ("text", [object()], "input 1: of type object; give a string, a Path, token ids, or a row"),
        ("text", [Path("nowhere.txt")], "features: nowhere.txt: no such file"),
    ],
)
def test_other_inputs_are_user_errors_that_say_what_is_wanted(
    models: dict[str, Model], kind: str, given: Any, reason: str
) -> None:
    with pytest.raises(UserError, match=f"^{reason}"):
        models[kind].features(given)


def test_the_features_function_takes_the_same_inputs(models: dict[str, Model], files: Path, tmp_path: Path) -> None:
    expected = models["speech"].features([WAVE]).hidden[0, 0]
    for number, given in enumerate((WAVE, [WAVE], (WAVE, 16000), [{"audio": {"array": WAVE, "sampling_rate": 16000}}])):
        data2vec.features(models["speech"], given, tmp_path / f"{number}.npy", device="cpu")
        np.testing.assert_allclose(np.load(tmp_path / f"{number}.npy"), expected, atol=1e-5)


def test_a_string_that_is_the_name_of_a_file_is_a_text_with_a_warning(
    models: dict[str, Model], files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, model = str(files / "a.txt"), models["text"]
    expected = model.features([name + " "]).lengths - 1
    assert model.features(name).lengths == expected and caplog.text.count("is taken as a text") == 1
    assert f"{name} is taken as a text, but there is a file of this name; to read it, pass Path({name!r})" in caplog.text
    model.features([TEXT, name, name])
    assert "(1 more of 3 inputs are names of files)" in caplog.text
    caplog.clear()
    model.features([TEXT, files / "a.txt"])
    assert not caplog.text


@pytest.mark.parametrize("kind", ["speech", "vision", "text"])
def test_a_model_can_be_pickled_copied_and_saved_by_torch(models: dict[str, Model], kind: str, tmp_path: Path) -> None:
    given: Any = {"speech": WAVE, "vision": PIXELS, "text": TEXT}[kind]
    model = models[kind]
    torch.save(model, tmp_path / "model.pt")
    for other in (
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
        copy.copy(model),
        torch.load(tmp_path / "model.pt", weights_only=False),
    ):
        assert other.recipe == model.recipe and type(other.recipe) is type(model.recipe)
        assert torch.equal(other.features(given).hidden, model.features(given).hidden)


@pytest.mark.parametrize("kind", ["speech", "vision", "text"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.2), (torch.float16, 0.03), (torch.float64, 1e-4)])
def test_features_are_in_the_precision_of_the_model(
    models: dict[str, Model], kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    given: Any = {"speech": [WAVE, WAVE[:5000]], "vision": PIXELS, "text": [TEXT, "nothing"]}[kind]
    expected = models[kind].features(given, "all")
    found = copy.deepcopy(models[kind]).to(dtype).features(given, "all")
    assert found.hidden.dtype == dtype and found.lengths.tolist() == expected.lengths.tolist()
    torch.testing.assert_close(found.hidden.float(), expected.hidden, atol=tolerance, rtol=0)
    pooled = copy.deepcopy(models[kind]).to(dtype=dtype).features(given, pool=True).hidden
    torch.testing.assert_close(pooled.float(), models[kind].features(given, pool=True).hidden, atol=tolerance, rtol=0)


def test_a_model_can_be_used_from_threads(models: dict[str, Model]) -> None:
    given = [WAVE[: 8000 - 700 * i] for i in range(6)]
    expected = [models["speech"].features(each).hidden for each in given]
    found: list[Any] = [None] * len(given)

    def compute(index: int) -> None:
        for _ in range(3):
            found[index] = models["speech"].features(given[index]).hidden

    threads = [threading.Thread(target=compute, args=(index,)) for index in range(len(given))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # of torch's own compiler
def test_a_compiled_model_has_the_same_features(models: dict[str, Model]) -> None:
    model = models["speech"]
    whole, blocks = copy.deepcopy(model), copy.deepcopy(model)
    for block in blocks.encoder.transformer.blocks:
        block.compile()
    for compiled in (replace(whole, encoder=torch.compile(whole.encoder)), blocks):
        torch.testing.assert_close(compiled.features(WAVE).hidden, model.features(WAVE).hidden, atol=1e-4, rtol=0)
