import errno
import re
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import data2vec
from data2vec import cli
from data2vec.errors import UserError
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from helpers.command import exit_status

TINY = [
    *("train.steps=4", "train.checkpoint_every=2", "train.schedule.warmup_steps=1", "train.device=cpu", "log.every=1"),
    "log.report=false",
    *("encoder.width=16", "encoder.layers=3", "encoder.heads=2", "encoder.ffn_width=32"),
    *("data.batch_size=16", "data.micro_batch_size=8", "data.workers=0"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of images, dark and bright, eight of each."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(16):
        low = 128 * (i % 2)
        (folder / ("dark", "bright")[i % 2]).mkdir(exist_ok=True)
        pixels = rng.integers(low, low + 128, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(folder / ("dark", "bright")[i % 2] / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the command in a process of its own."""
    out = tmp_path_factory.mktemp("runs") / "run"
    result = command("pretrain", "vision/v1-tiny", "--out", str(out), f"data.train={images}", *TINY)
    assert result.returncode == 0, result.stderr
    assert f"model: {out}/model" in result.stdout
    assert "step 4/4: loss" in result.stderr
    return out


def command(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "data2vec", *words], capture_output=True, text=True, timeout=120, **more)  # type: ignore[call-overload]


def stderr_lines(capsys: pytest.CaptureFixture[str], status: int, *words: str) -> list[str]:
    """What a failing command prints to stderr."""
    assert exit_status(*words) == status
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return [line for line in printed.splitlines() if not line.startswith(f"data2vec {data2vec.__version__}, ")]  # what starts


def pretrain_errors(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    return stderr_lines(capsys, 2, "pretrain", "vision/v1-tiny", *words)


def test_help_of_a_verb_lists_its_options_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, printed in (
        ("pretrain", "train.lr (0.0005)  Peak learning rate."),
        ("probe", "probe.knn_k (10)"),
        ("recipes", "NAME"),
        ("demo", "--out"),
        ("report", "RUN"),
        ("export", "--tolerance"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main([verb, "--help"])
        assert ended.value.code == 0
        assert printed in capsys.readouterr().out


def shown_help(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", ["pretrain", "finetune", "plan", "recipes"])
def test_help_with_a_recipe_lists_its_settings_with_its_values(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = shown_help(capsys, verb, "speech/ctc-tiny")
    recipe = data2vec.load_recipe("speech/ctc-tiny")
    keys = [line.split()[0] for line in printed.splitlines() if re.match(r"  [a-z_]+\.[a-z_.]+( |$)", line)]
    assert {key for key in recipe.flat() if recipe.flat()[key] not in ({}, [])} <= {*keys, "init"}
    assert f"train.lr ({recipe.train.lr})  Peak learning rate." in printed
    assert "objective.decode.beam (" in printed
    assert "objective.teacher" not in printed and "modality.patch" not in printed


def test_help_with_a_recipe_takes_its_overrides_in_any_order(capsys: pytest.CaptureFixture[str]) -> None:
    printed = shown_help(capsys, "pretrain", "--out", "text/v1-tiny", "train.lr=0.25", "vision/v2-tiny", "--device", "cpu")
    assert "settings of vision/v2-tiny" in printed
    assert "train.lr (0.25)" in printed


def test_help_with_an_unknown_recipe_is_a_user_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("pretrain", "vision/v2-tinny", "--help") == 2
    assert "did you mean 'vision/v2-tiny'?" in capsys.readouterr().err


def test_help_does_not_import_torch() -> None:
    code = "import sys; from data2vec.cli import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "data2vec pretrain vision/v2-tiny" in result.stdout
    assert result.stdout.splitlines()[-1] == "False"


def test_version_prints_the_package_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"data2vec {data2vec.__version__}\n"


def test_recipes_lists_all_and_prints_one_that_loads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{modality}/v{version}-base " in listed for modality in ("speech", "vision", "text") for version in (1, 2))
    assert re.search(r"speech/v2-base +93\.2 million +3\.3 days GPU  data2vec 2", listed)
    assert "measures a step on this machine" in listed.splitlines()[-1]
    assert cli.main(["recipes", "text/v1-tiny"]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    assert cli.main(["recipes", str(tmp_path / "mine.yaml")]) == 0
    assert capsys.readouterr().out == (tmp_path / "mine.yaml").read_text()


def test_probe_of_a_run_prints_the_untrained_baseline(run: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["probe", str(run), "--data", str(images), "--valid", str(images), "probe.knn_k=3", "data.workers=0"]
    assert cli.main(words) == 0
    assert "untrained" in capsys.readouterr().out


def test_pretrain_with_wrong_overrides_prints_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain_errors(capsys, "train.stepz=3", "encoder.width=big") == [
        "data2vec: error: vision/v1-tiny: encoder.width: should be a valid integer, not 'big'",
        "data2vec: error: vision/v1-tiny: train.stepz: unknown setting; did you mean 'steps'?",
    ]
    assert pretrain_errors(capsys, "quickly") == [
        "data2vec: error: 'quickly' is not an override: write key=value, such as train.lr=1e-3"
    ]


def test_overrides_are_accepted_before_and_after_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    lines = pretrain_errors(capsys, "train.stepz=1", "--out", "nowhere", "train.sead=1")
    assert [line.split(": ")[3] for line in lines] == ["train.stepz", "train.sead"]


MALFORMED = [
    *(["pretrian"], ["pretrain"], ["recipes", "a", "b"], ["pretrain", "x", "--fast"], list[str]()),
    *(["recipes", "a\0b"], ["check", "\udce9"], ["convert", "a", "b", "--to", "c\n\x1b[2J"]),
    *(["features", "m", "x"], ["features", "m", "x", "--out", "f", "--batch", "many"]),
    *(["transcribe", "m", "x", "--beam", "-1"], ["transcribe", "m", "x", "--lm-weight", "nan"]),
    *(["check", "x", "--workers", "1000000"], ["evaluate", "m", "--tune", "-1"], ["compare", "x", "--processes", "0"]),
    *(["export", "m", "--out", "f.onnx", "--tolerance", "inf"], ["finetune", "r", "--seeds", "9" * 5000]),
]


@pytest.mark.parametrize("words", MALFORMED, ids=map(str, range(len(MALFORMED))))
def test_malformed_command_line_is_one_line_and_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("data2vec") and ": error: " in line and line.isprintable()


LONG = "x" * 300
WRONG_PATHS = """
recipes LONG.yaml; recipes ~nobody/x.yaml; recipes /dev/null/x.yaml; recipes .
check LONG; check ~nobody/x; check /dev/null/x; check EMPTY; check FILE --json .; check IMAGES --kind audio
report LONG; report ~nobody/x; report FILE; report EMPTY
features LONG x --out f.npy; features ~nobody/x x --out f.npy; export LONG --out f.onnx
probe ~nobody/x --data x; probe LONG --data x; evaluate LONG; evaluate EMPTY; evaluate FILE
transcribe ~nobody/m x.wav; transcribe m x.wav --json /dev/null/x; transcribe m x --json .
convert LONG x --to data2vec; convert FILE x --to fairseq
finetune vision/classify-tiny --model ~nobody/m; finetune vision/classify-tiny --model LONG
finetune speech/ctc-tiny data.train=LONG; finetune speech/ctc-tiny data.train=IMAGES --out FILE/x
pretrain vision/v2-tiny data.train=LONG; pretrain vision/v2-tiny data.train=~nobody/x
pretrain vision/v2-tiny data.train=IMAGES --out LONG; pretrain vision/v2-tiny data.train=IMAGES --out FILE
pretrain vision/v2-tiny data.train=IMAGES --out FILE/x; pretrain vision/v2-tiny data.train=IMAGES --out EMPTY
compare LONG --out x; compare ~nobody/x.yaml; compare text --out FILE/x --data IMAGES; ablate LONG
demo --out FILE/x; demo --out LONG
"""


@pytest.mark.parametrize("words", WRONG_PATHS.strip().replace(";", "\n").splitlines())
def test_path_that_cannot_be_opened_is_one_line_and_exits_with_2(
    words: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("x")
    Path("IMAGES").symlink_to(images)
    (line,) = stderr_lines(capsys, 2, *(word.replace("LONG", LONG).replace("EMPTY", "") for word in words.split()))
    assert line.startswith("data2vec: error: ") and len(line) < 1000


def test_name_with_control_characters_is_shown_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = tmp_path / "a\n\x1b[2Jb"
    name.mkdir()
    (line,) = stderr_lines(capsys, 2, "check", str(name))
    assert r"a\n\x1b[2Jb" in line


def test_full_disk_is_no_user_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    monkeypatch.setattr("data2vec.recipe.shipped.recipe_names", fail)
    assert len(stderr_lines(capsys, 1, "recipes")) == 1


def test_pretrain_on_a_missing_or_imageless_folder_exits_with_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    (line,) = pretrain_errors(capsys, "--out", str(out), f"data.train={tmp_path}/nowhere")
    assert line.startswith(f"data2vec: error: {tmp_path}/nowhere: there is no such folder")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("hello")
    (line,) = pretrain_errors(capsys, "--out", str(out), f"data.train={tmp_path}/notes")
    assert "no image found" in line
    assert not out.exists()


def test_pretrain_into_an_existing_run_exits_with_2(run: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = pretrain_errors(capsys, "--out", str(run), f"data.train={images}", *TINY)
    assert (
        line == f"data2vec: error: --out {run}: already contains a run; resume it with --resume {run}, or choose another --out"
    )


def test_resume_with_a_truncated_checkpoint_continues_from_the_previous_one(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "step-4" / "objective.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    words = ["pretrain", "vision/v1-tiny", "--out", str(tmp_path / "run"), "--resume", f"data.train={images}", *TINY]
    assert cli.main(words) == 0
    printed = capsys.readouterr().err
    assert "step-4: objective.safetensors has" in printed
    assert "step 3/4" in printed
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == (run / "model" / "model.safetensors").read_bytes()


def test_probe_of_a_truncated_model_names_its_file(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run / "model", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    lines = stderr_lines(capsys, 2, "probe", str(tmp_path / "model"), "--data", str(images), "--valid", str(images))
    assert len(lines) == 1
    assert f"{file} is damaged" in lines[0]


def test_probe_of_something_else_than_a_model_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stderr_lines(capsys, 2, "probe", str(tmp_path), "--data", "x") == [
        f"data2vec: error: {tmp_path} is not a data2vec run or model folder"
    ]


def test_full_disk_exits_with_one_line_and_keeps_checkpoints(run: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    size = (run / "checkpoints" / "step-4" / "objective.safetensors").stat().st_size

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 100, size - 100))

    words = ["pretrain", "vision/v1-tiny", "--out", str(tmp_path / "run"), "--resume", f"data.train={images}"]
    result = command(*words, *TINY, "train.steps=6", preexec_fn=limit)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("data2vec: stopped:")]
    assert "disk full: no space left" in line
    assert "the latest complete checkpoint is step-4" in line
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-2", "step-4"]


def test_ctrl_c_saves_a_checkpoint_and_exits_with_130(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [sys.executable, "-m", "data2vec", "pretrain", "vision/v1-tiny", "--out", str(out), f"data.train={images}"]
    child = subprocess.Popen([*words, *TINY, "train.steps=100000", "data.workers=1"], stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    for line in child.stderr:
        if "step 3/" in line:
            break
    child.send_signal(signal.SIGINT)
    _, printed = child.communicate(timeout=300)
    assert child.returncode == 130
    assert "Traceback" not in printed
    assert printed.splitlines()[-1].startswith("data2vec: stopped: interrupted; checkpoint saved at step")
    assert list(out.glob("checkpoints/step-*/complete.json"))


def test_internal_error_prints_one_line_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("data2vec.recipe.shipped.recipe_names", lambda: 1 / 0)
    assert stderr_lines(capsys, 1, "recipes") == [
        "data2vec: failed: ZeroDivisionError: division by zero (set DATA2VEC_TRACEBACK=1 to see the traceback)"
    ]
    monkeypatch.setenv("DATA2VEC_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main(["recipes"])


def test_user_error_is_printed_only_by_the_main_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert pretrain_errors(capsys, "train.stepz=3") == []


def test_model_features_of_files_equal_those_of_arrays_for_every_layer(run: Path, images: Path) -> None:
    model = data2vec.load(run)
    files = sorted(images.rglob("*.png"))[:3]
    every = model.features(files, layers="all", batch=2)
    assert every.hidden.shape == (3, 3, 64, 16)
    assert every.lengths.tolist() == [64, 64, 64]
    assert every.seconds is None
    assert torch.equal(model.features(files, layers=2).hidden, model.features(files, layers=-2).hidden)
    assert torch.allclose(model.features(files[1:2], layers=3).hidden[0, 0], every.hidden[2, 1], atol=1e-6)
    # this recipe has a final norm, so what the encoder puts out is not the last block's output
    assert not torch.allclose(model.features(files).hidden[0], every.hidden[-1])
    from PIL import Image

    arrays = [np.array(Image.open(file)) for file in files]
    assert torch.equal(model.features(arrays, layers="all").hidden, model.features(files, layers="all").hidden)
    for wrong in (0, 4, -4, "first"):
        with pytest.raises(data2vec.UserError, match="this model has blocks 1 to 3"):
            model.features(files, layers=wrong)  # type: ignore[arg-type]
    with pytest.raises(data2vec.UserError, match=r"nowhere\.png"):
        model.features(["nowhere.png"])


def test_pretrain_on_clips_too_short_for_a_mask_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import soundfile

    (tmp_path / "clips").mkdir()
    noise = np.random.default_rng(0).standard_normal((8, 640)) * 0.1
    for i, clip in enumerate(noise):
        soundfile.write(tmp_path / "clips" / f"{i}.wav", clip, 16000)
    words = ("data.min_seconds=0.03", "data.max_seconds=0.2", "data.batch_seconds=0.2", "data.micro_batch_seconds=0.2")
    run = ("--out", str(tmp_path / "run"), f"data.train={tmp_path / 'clips'}", "data.workers=0", *words)
    *plan, line = stderr_lines(capsys, 2, "pretrain", "speech/v1-tiny", *run)
    assert not [each for each in plan if "error" in each]
    assert "a sequence of 1 positions is too short for 1 masked span(s)" in line and "data.min_seconds" in line


@pytest.mark.parametrize("words", [["--seeds", "2", "--scratch"], ["--sweep", "train.lr=1e-3", "--resume"]])
def test_finetune_sweep_with_scratch_or_resume_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["finetune", "vision/classify-tiny", *words]) == 2
    assert "cannot be used with --sweep or --seeds" in capsys.readouterr().err


def test_finetune_sweep_without_values_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["finetune", "vision/classify-tiny", "--sweep", "train.lr"]) == 2
    assert "--sweep 'train.lr': no values" in capsys.readouterr().err


DEVICE_WORDS = {
    "pretrain": ["vision/v1-tiny"],
    "finetune": ["vision/classify-tiny"],
    "plan": ["vision/v1-tiny", "--data", "x"],
    "evaluate": ["RUN"],
    "probe": ["RUN"],
    "features": ["RUN", "x", "--out", "x.npy"],
    "transcribe": ["RUN", "x.wav"],
    "predict": ["RUN", "x.png"],
}


@pytest.mark.parametrize("verb", DEVICE_WORDS)
def test_device_is_an_option_of_every_verb_that_computes(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = cli.parse_arguments([verb, *DEVICE_WORDS[verb], "--device", "cuda:1"])
    assert arguments.device == "cuda:1"
    assert getattr(arguments, "overrides", ["train.device=cuda:1"]) == ["train.device=cuda:1"]
    with pytest.raises(SystemExit) as exit:
        cli.parse_arguments([verb, *DEVICE_WORDS[verb], "--device", "gpu"])
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "argument --device: 'gpu' is not a device; use auto, cpu, cuda or cuda:N" in line


def test_device_and_another_train_device_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse_arguments(["pretrain", "vision/v1-tiny", "train.device=cpu", "--device", "cuda"])
    assert "--device cuda and train.device=cpu name two devices; omit one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["check", "photos", "--split", "test", "data.split=train"],
        ["check", "photos", "data.column=b", "--column", "a"],
        ["features", "run", "photos", "--out", "f.npy", "--split", "test", "data.split=train"],
        ["predict", "run", "photos", "--column", "a", "data.column=b"],
    ],
)
def test_split_or_column_named_twice_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.parse_arguments(words)
    assert exit.value.code == 2
    name = "split" if "--split" in words else "column"
    assert f"--{name} and data.{name} name the {name} twice; omit one of them" in capsys.readouterr().err


def test_split_is_train_unless_named() -> None:
    assert cli.parse_arguments(["check", "photos"]).split == "train"
    assert cli.parse_arguments(["predict", "run", "photos", "--split", "test"]).split == "test"


def test_setting_whose_name_holds_a_hyphen_is_no_input() -> None:
    for name in ("Fp1-A2", "EEG Fp1-A2", "EEG Fp1.A2", "Fp1/A2"):
        arguments = cli.parse_arguments(["features", "run", "a.edf", f"modality.aliases.{name}=Fp1", "--out", "f.npy"])
        assert (arguments.inputs, arguments.reading) == (["a.edf"], [f"modality.aliases.{name}=Fp1"])


def test_word_with_an_equals_sign_is_an_input_unless_it_begins_with_a_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.v=1.csv").touch()
    words = ["nofile.v2=x.csv", "data.v=1.csv", "train.lr=1"]
    arguments = cli.parse_arguments(["features", "run", *words, "--out", "f.npy"])
    assert (arguments.inputs, arguments.reading) == (words[:2], words[2:])
    assert {*cli.SECTIONS, "init"} == {*Recipe.model_fields}


def test_probe_is_on_the_device_of_this_machine_not_of_the_training(run: Path, images: Path) -> None:
    model = data2vec.load(run)
    elsewhere = replace(model, recipe=load_recipe(model.recipe, {"train.device": "cuda:9"}))
    assert data2vec.probe(elsewhere, images, images).valid == 16
    with pytest.raises(UserError, match="'cuda:9' is not available"):
        data2vec.probe(elsewhere, images, images, {"train.device": "cuda:9"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--draws", "3"], "--draws 3 has no effect without --shots N"),
        (["--shots", "8", "--superb"], "--shots and --superb are different probes; run them one after the other"),
        (["--tokens", "x", "--compile", "--precision", "bf16"], "; omit --compile and --precision bf16"),
        (["--tokens", "x", "--shots", "8"], "--tokens and --shots are different probes; run them one after the other"),
    ],
)
def test_options_of_different_probes_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in stderr_lines(capsys, 2, "probe", "RUN", *words)[0]


def test_probe_of_a_run_by_shots_prints_the_draws(run: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["probe", str(run), "--data", str(images), "--valid", str(images), "--shots", "2", "--draws", "3", "data.workers=0"]
    assert cli.main(words) == 0
    assert "3 draws of 2 examples of each class" in capsys.readouterr().out
    assert (run / "probe_few_shot.json").is_file()
