"""The command `data2vec`: each verb is a thin call to one public function.

Exit status: 0 success; 1 the run, the machine or the program failed; 2 a user error, reported on stderr in lines starting with
"data2vec: error:" ("data2vec VERB: error:" for a wrong option); 130 interrupted by Ctrl-C; 143, 138 or 129 training
stopped by SIGTERM, SIGUSR1 or SIGHUP. Training saves a checkpoint before it stops for a signal.
"""

import argparse
import contextlib
import errno
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from data2vec import __version__, cli_help
from data2vec.console.progress import LEVELS, set_level
from data2vec.data.sources.formats import is_utf8
from data2vec.data.sources.hub import require_dataset
from data2vec.errors import Interrupted, RunStopped, Unfinished, UserError, printable, quoted
from data2vec.local_path import output_file
from data2vec.modalities.custom_classes import trust_class
from data2vec.recipe.shipped import require_recipe, settings_of_verb

if TYPE_CHECKING:
    from data2vec.feature_extraction import Layers
    from data2vec.run_dir import Run
    from data2vec.train.resumed_recipe import Verb

WRONG_PATH = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENAMETOOLONG, errno.ELOOP),
}
"""The errors of files that are mistakes of a user, wherever the file is opened; others are failures of the machine."""
SECTIONS = ("modality", "encoder", "objective", "health", "data", "train", "probe", "log")
"""Those of a recipe."""
_SETTING = re.compile(rf"({'|'.join(SECTIONS)})\..+?=")
"""The beginning of key=value among the inputs of a verb; names in it, as of channels, may have any characters."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process). Returns the exit status."""
    # Set before torch is imported: OpenMP threads that spin while they wait slow down a busy machine several times.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack the characters of a name or a transcript
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    try:
        for setting in ("modality", "objective"):
            if (custom := getattr(arguments, setting, None)) is None or arguments.call is _check_modality:
                continue
            if arguments.call is not _check or ":" in custom:  # which takes names of built-in ones, too
                trust_class(custom, f"--{setting}")
        set_level(getattr(arguments, "log_level", "info"))
        _refuse_wrong_paths(arguments)
        arguments.call(arguments)
        sys.stdout.flush()
        return 0
    except UserError as error:
        return _report_failure("error", _with_notes(str(error), error), 2, every_process=False)
    except Unfinished as done:
        print(f"data2vec: {done}", file=sys.stderr)
        return 0
    except RunStopped as error:
        status = 128 + error.signal if isinstance(error, Interrupted) else 1
        return _report_failure("stopped", _with_notes(str(error), error), status, every_process=False)
    except KeyboardInterrupt as error:
        return _report_failure("stopped", str(error) or "interrupted", 130, every_process=False)
    except BrokenPipeError:  # the reader of our output has closed it, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        in_a_run = hasattr(error, "__notes__")  # of what it saved: the path was right when the run started
        if error.errno not in WRONG_PATH or error.filename is None or in_a_run or os.environ.get("DATA2VEC_TRACEBACK"):
            return _report_unexpected(error)
        return _report_failure("error", f"{os.fsdecode(error.filename)}: {error.strerror}", 2, every_process=False)
    except Exception as error:
        return _report_unexpected(error)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line; `call` of them runs its verb. Exits with status 2 for wrong ones."""
    parser = _build_parser()
    if wrong := [word for word in argv if "\0" in word or not is_utf8(word)]:
        parser.error(f"{quoted(wrong[0])} is no text in UTF-8; rename it")
    if (before := _before_empty(argv)) is not None:
        parser.error(
            f"an empty argument {f'after {before}' if before else 'in the command'}; is a variable of the shell unset?"
        )
    # argparse does not accept a key=value after an option
    arguments, rest = parser.parse_known_args(argv)
    if hasattr(arguments, "inputs"):
        words = [*arguments.inputs, *(word for word in rest if not word.startswith("-"))]
        arguments.reading = [word for word in words if _SETTING.match(word) and not os.path.exists(word)]
        arguments.inputs = [word for word in words if word not in arguments.reading]
        rest = [word for word in rest if word.startswith("-")]
        if not arguments.inputs:
            parser.error(f"INPUT is missing; name files, or one data set ({arguments.reading[0]} is taken for a setting)")
    if wrong := [word for word in rest if word.startswith("-") or not hasattr(arguments, "overrides")]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if rest:
        arguments.overrides += rest
    if hasattr(arguments, "overrides") and (device := getattr(arguments, "device", None)) is not None:
        given = [word for word in arguments.overrides if word.startswith("train.device=")]
        if given and device not in ("auto", given[-1].partition("=")[2]):
            parser.error(f"--device {device} and {given[-1]} name two devices; omit one of them")
        arguments.overrides += [] if given else [f"train.device={device}"]
    settings = [*getattr(arguments, "overrides", []), *getattr(arguments, "reading", [])]
    for option in ("split", "column"):
        if getattr(arguments, option, None) is not None and any(word.startswith(f"data.{option}=") for word in settings):
            parser.error(f"--{option} and data.{option} name the {option} twice; omit one of them")
    if arguments.call is _check and any(word.startswith("data.train=") for word in settings):
        parser.error("DATA and data.train name the data twice; omit data.train")
    if hasattr(arguments, "split") and arguments.split is None:
        arguments.split = "train"
    if hasattr(arguments, "recipe") and hasattr(arguments, "resume"):
        _sort_words(arguments)
        if arguments.recipe is None and arguments.resume is None:
            parser.error("RECIPE is missing; name a recipe, or a run by --resume RUN")
    return arguments


def _refuse_wrong_paths(arguments: argparse.Namespace) -> None:
    """Raise UserError for a recipe or data that are not there, before a verb imports for seconds what it needs."""
    if getattr(arguments, "recipe", None) is not None:
        require_recipe(arguments.recipe)
    if arguments.call is _check:
        require_dataset(arguments.data)


def _sort_words(arguments: argparse.Namespace) -> None:
    """Sort RECIPE, RUN of --resume and key=value apart, which may follow one another in any order, and RUN may be missing."""
    a = arguments
    words = [word for word in (a.recipe, *a.overrides) if word is not None]
    if isinstance(a.resume, str) and not Path(a.resume).is_dir() and ("=" in a.resume or a.out is not None):
        words.append(a.resume) if "=" in a.resume else words.insert(0, a.resume)
        a.resume = True
    names_recipe = bool(words) and (a.resume is None or "=" not in words[0] or Path(words[0]).is_file())
    a.recipe, a.overrides = (words[0], words[1:]) if names_recipe else (None, words)
    if a.resume is True and a.out is not None and a.recipe is None:
        a.resume = a.out


def _before_empty(argv: Sequence[str]) -> str | None:
    """What precedes an empty argument, which as a path would be the current folder; None if there is none."""
    for before, word in zip(["", *argv], argv, strict=False):
        if not word.strip():
            return before
        if word.startswith("--") and word.endswith("="):
            return word
    return None


def _report_unexpected(error: Exception) -> int:
    if os.environ.get("DATA2VEC_TRACEBACK"):
        raise error
    what = " ".join(str(error).split())[:300]
    hint = "set DATA2VEC_TRACEBACK=1 to see the traceback"
    return _report_failure("failed", _with_notes(f"{type(error).__name__}: {what} ({hint})", error), 1, every_process=True)


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _has_several_processes() -> bool:
    """Whether torchrun has started several."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def _report_failure(kind: str, message: str, status: int, every_process: bool) -> int:
    with contextlib.suppress(OSError):  # the terminal may be closed
        for line in message.split("\n") if every_process or _is_main_process() else ():
            print(f"data2vec: {kind}: {printable(line)}", file=sys.stderr)
    return status


def _with_notes(message: str, error: BaseException) -> str:
    """The message, and what was added to the error on its way: which checkpoint was saved, and how to resume."""
    return "; ".join([message, *map(printable, getattr(error, "__notes__", []))])


def _build_parser() -> argparse.ArgumentParser:
    about = "Pre-train one Transformer by one self-supervised method (data2vec 1 and 2) on speech, images, text or signals."
    parser = _Parser("data2vec", description=about, epilog=cli_help.GUIDE, formatter_class=_Plain)
    parser.add_argument("--version", action="version", version=f"data2vec {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=_VerbParser)
    model = "a run or model folder, RUN@step-N, RUN@last, an official .pt, a transformers folder, or hf://owner/name[@revision]"

    verb = _add_verb(verbs, "demo", _demo, "pre-train tiny models on images, text, speech and signals, without downloads")
    named = "images, text, speech, signals, sound, videos or joint (default: the first four)"
    verb.add_argument("names", metavar="NAME", nargs="*", help=named)
    verb.add_argument("--out", metavar="DIR", type=Path, default=Path("demo"), help="output folder (default: %(default)s)")

    verb = _add_verb(verbs, "pretrain", _pretrain, "pre-train on unlabelled data", cli_help.PRETRAIN)
    recipe = "a shipped recipe ('data2vec recipes' lists them) or a YAML file; not needed with --resume RUN"
    verb.add_argument("recipe", metavar="RECIPE", nargs="?", help=recipe)
    verb.add_argument("--out", metavar="RUN", help="run folder (default: runs/ and the recipe's name)")
    resume = "resume RUN (default: --out) from its latest complete checkpoint, by its own recipe and the key=value given now"
    verb.add_argument("--resume", metavar="RUN", nargs="?", const=True, help=resume)
    verb.add_argument("--dry-run", action="store_true", help="print the plan of the run, as 'data2vec plan' does, and end")
    verb.add_argument("overrides", metavar="key=value", nargs="*", help="a setting, such as train.lr=1e-3")

    verb = _add_verb(verbs, "finetune", _finetune, "fine-tune on labelled data", cli_help.FINETUNE)
    verb.add_argument("recipe", metavar="RECIPE", nargs="?", help=recipe)
    verb.add_argument("--model", metavar="MODEL", help=f"the pre-trained model: {model} (default: train from scratch)")
    verb.add_argument("--scratch", action="store_true", help="use only the shape of MODEL, with fresh weights, as a baseline")
    verb.add_argument("--out", metavar="RUN", help="run folder (default: runs/ and the recipe's name)")
    verb.add_argument("--resume", metavar="RUN", nargs="?", const=True, help=resume)
    verb.add_argument("--dry-run", action="store_true", help="print the plan of the run, as 'data2vec plan' does, and end")
    sweep = "train one run per value of a setting; repeat for a grid of settings"
    verb.add_argument("--sweep", metavar="key=a,b,c", action="append", default=[], help=sweep)
    verb.add_argument(
        "--seeds", metavar="N", type=_number(int, 0, 1000), default=0, help="repeat with seeds 1 to N; report median and spread"
    )
    folds = "one run for each value of this column of data.train, such as fold, validated on it and trained on the others"
    verb.add_argument("--folds", metavar="COLUMN", help=folds)
    verb.add_argument("overrides", metavar="key=value", nargs="*", help="a setting, such as train.steps=4000")

    about = "continue the pre-training of a trained model on other data; report what that changed"
    verb = _add_verb(verbs, "adapt", _adapt, about, cli_help.ADAPT)
    verb.add_argument("model", metavar="MODEL", nargs="?", help=f"{model}; not needed with --resume RUN")
    verb.add_argument("--data", metavar="DATA", help="unlabelled data; a tenth is held out, unless data.valid is set")
    verb.add_argument("--out", metavar="RUN", help="run folder (default: runs/ and the model's name, -adapted)")
    verb.add_argument("--steps", metavar="N", type=_number(int, 1), help="optimizer steps (default: chosen for the data)")
    labels = "also probe before and after on these labels: a column of DATA, or of probe.data=LABELLED"
    verb.add_argument("--labels", metavar="COLUMN", help=labels)
    keep = "labelled data of what MODEL was good at, probed before and after: what is forgotten"
    verb.add_argument("--keep", metavar="LABELLED", help=keep)
    verb.add_argument(
        "--keep-labels", metavar="COLUMN", help="the label column of --keep (default: that of --labels, or label)"
    )
    verb.add_argument("--scratch", action="store_true", help="also train new weights for as many steps, to compare")
    verb.add_argument("--resume", metavar="RUN", help="finish an interrupted adaptation, or measure a finished one again")
    verb.add_argument("--dry-run", action="store_true", help="print the plan of the run, as 'data2vec plan' does, and end")
    verb.add_argument("overrides", metavar="key=value", nargs="*", help="a setting, such as train.lr=1e-4")

    about = "print what a run will be, and what would be unwise, without starting it"
    verb = _add_verb(verbs, "plan", _plan, about, cli_help.PLAN)
    verb.add_argument("recipe", metavar="RECIPE", help="a shipped recipe ('data2vec recipes' lists them) or a YAML file")
    verb.add_argument("--data", metavar="DATA", help="short for data.train=DATA")
    verb.add_argument("--model", metavar="MODEL", help="the model that a fine-tuning recipe starts from")
    verb.add_argument("--out", metavar="RUN", type=Path, help="the run folder, for the free space on its disk")
    verb.add_argument("--no-measure", action="store_true", help="only count; make no step to measure memory and time")
    verb.add_argument("--json", metavar="FILE", type=Path, help="also write all numbers as JSON")
    verb.add_argument("overrides", metavar="key=value", nargs="*", help="a setting, such as train.lr=1e-3")

    verb = _add_verb(verbs, "evaluate", _evaluate, "evaluate a fine-tuned model on labelled data", cli_help.EVALUATE)
    verb.add_argument("model", metavar="MODEL|RUN", help="a fine-tuned model or its run folder")
    tune = "tune the beam search weights with N trials on data.valid (default: no tuning)"
    verb.add_argument("--tune", metavar="N", type=_number(int, 0), default=0, help=tune)
    verb.add_argument("overrides", metavar="key=value", nargs="*", help="a setting, such as data.valid=test/")

    inputs = "files, or one data set in any form that data.train accepts; and settings of how it is read, such as data.rate=50"
    about = "predict classes, labels, numbers or transcripts of new inputs with a fine-tuned model"
    verb = _add_verb(verbs, "predict", _predict, about, cli_help.PREDICT)
    verb.add_argument("model", metavar="MODEL", help="a run or model that was fine-tuned")
    verb.add_argument("inputs", metavar="INPUT|key=value", nargs="+", help=inputs)
    table = "write a table, a .csv, .jsonl or .parquet file (default: print a line per input)"
    verb.add_argument("--out", metavar="FILE", type=Path, help=table)
    top_k = "list the N most probable labels, not only the first (default: %(default)s)"
    verb.add_argument("--top-k", metavar="N", type=_number(int, 1), default=1, help=top_k)
    threshold = "of multi-label models: the smallest probability of a predicted label (default: 0.5)"
    verb.add_argument("--threshold", metavar="P", type=_number(float, 0, 1), help=threshold)
    verb.add_argument("--split", metavar="NAME", help="the split of the data set (default: train)")
    column = "the column of the audio, image or text (default: that of the model's data, or a known name)"
    verb.add_argument("--column", metavar="NAME", help=column)
    verb.add_argument(
        "--second", metavar="NAME", help="of pairs of texts: the column of the second (default: that of fine-tuning)"
    )
    verb.add_argument(
        "--batch", metavar="N", type=_number(int, 1), help="maximum positions per batch (default: depends on the device)"
    )

    verb = _add_verb(verbs, "transcribe", _transcribe, "transcribe audio with a fine-tuned model", cli_help.TRANSCRIBE)
    verb.add_argument("model", metavar="MODEL", help="a run or model fine-tuned with CTC")
    verb.add_argument("audio", metavar="AUDIO", nargs="+", help="audio files of any length")
    verb.add_argument("--words", action="store_true", help="print a line per word, with its start and end in seconds")
    verb.add_argument("--json", metavar="FILE", type=Path, help="also write a JSON object per file, with words and times")
    verb.add_argument("--lm", metavar="FILE", help="n-gram language model for beam search, ARPA or KenLM binary")
    verb.add_argument("--lexicon", metavar="FILE", help="words the beam search may output (default: those of the LM)")
    verb.add_argument("--beam", metavar="N", type=_number(int, 1, 10**6), default=50, help="beam size (default: %(default)s)")
    verb.add_argument(
        "--lm-weight", metavar="X", type=_number(float), default=2.0, help="language model weight (default: %(default)s)"
    )
    verb.add_argument(
        "--word-score", metavar="X", type=_number(float), default=-1.0, help="score added per word (default: %(default)s)"
    )

    verb = _add_verb(verbs, "probe", _probe, "evaluate frozen features by a linear probe and kNN", cli_help.PROBE)
    verb.add_argument("model", metavar="MODEL", help=model)
    verb.add_argument("--data", metavar="DATA", help="labelled data to fit the classifiers on")
    verb.add_argument("--valid", metavar="DATA", help="labelled data to evaluate on (default: a held-out fifth of --data)")
    verb.add_argument("--labels", metavar="COLUMN", help="the label column")
    shots = "few-shot protocol of MTEB and MAEB: fit to N examples of each class (theirs: 8), mean over --draws"
    verb.add_argument("--shots", metavar="N", type=_number(int, 1), help=shots)
    verb.add_argument("--draws", metavar="N", type=_number(int, 1), help="with --shots: draws of the examples (default: 10)")
    superb = "train SUPERB's utterance-level head on a weighted sum of all layers; the learning rate is chosen on a dev part"
    verb.add_argument("--superb", action="store_true", help=superb)
    attentive = "train an attentive probe: a learned query attends to the positions; the learning rate is chosen on a dev part"
    verb.add_argument("--attentive", action="store_true", help=attentive)
    layer = "with --attentive: only block N, from 1, or from the end (-1) (default: every block)"
    verb.add_argument("--layer", metavar="N", type=_number(int), help=layer)
    metric = "of linear and kNN: the score of every layer in the table (default: accuracy)"
    verb.add_argument("--metric", choices=("accuracy", "balanced_accuracy", "kappa", "weighted_f1", "auroc"), help=metric)
    tokens = "of a text model: predict masked tokens of this unlabelled text instead; --valid is then held-out text"
    verb.add_argument("--tokens", metavar="TEXT", help=tokens)
    view = "with --tokens: predict a token from its neighbours, or see <mask> in its place (default: neighbours)"
    verb.add_argument("--view", choices=("neighbours", "mask_token"), help=view)
    verb.add_argument("overrides", metavar="key=value", nargs="*", help="a setting, such as probe.knn_k=20")

    verb = _add_verb(verbs, "features", _features, "extract features of files or a data set into one file", cli_help.FEATURES)
    verb.add_argument("model", metavar="MODEL", help=model)
    verb.add_argument("inputs", metavar="INPUT|key=value", nargs="+", help=inputs)
    verb.add_argument("--out", metavar="FILE", type=Path, required=True, help="a .safetensors, .npy or .parquet file")
    layers = "last (default), all, states, mean; a block from 1, or from the end (-1); or a weight per block, such as 0,0.5,0.5"
    verb.add_argument("--layers", metavar="LAYERS", type=_parse_layers, default="last", help=layers)
    verb.add_argument("--pool", action="store_true", help="average over positions: one vector per input")
    verb.add_argument("--split", metavar="NAME", help="the split of the data set (default: train)")
    column = "the column of the audio, image or text (default: that of the model's data, or a known name)"
    verb.add_argument("--column", metavar="NAME", help=column)
    verb.add_argument(
        "--batch", metavar="N", type=_number(int, 1), help="maximum positions per batch (default: depends on the device)"
    )

    verb = _add_verb(
        verbs, "check", _check, "read a complete data set; report its contents and unreadable files", cli_help.CHECK
    )
    verb.add_argument("data", metavar="DATA", help="any form that data.train accepts: a folder, file, archive or hub data set")
    kinds = "what to read (default: detected)"
    verb.add_argument("--kind", choices=("audio", "image", "text", "recording"), help=kinds)
    verb.add_argument("--split", metavar="NAME", help="the split of the data set (default: train)")
    verb.add_argument("--column", metavar="NAME", help="the column of the audio, image or text (default: a known name)")
    verb.add_argument("--labels", metavar="COLUMN", help="the column of classes (default: label)")
    verb.add_argument("--tokenizer", metavar="FOLDER", help="tokenizer for token counts (default: one trained on the text)")
    verb.add_argument("--workers", metavar="N", type=_number(int, 0, 512), help="reader processes (default: one per core)")
    verb.add_argument("--json", metavar="FILE", type=Path, help="also write all findings, with all file names, as JSON")
    verb.add_argument("--recipe", metavar="RECIPE", help="with --modality: the recipe with its settings (default: its own)")
    verb.add_argument(
        "overrides", metavar="key=value", nargs="*", help="with --modality, or of recordings: a setting, such as data.rate=50"
    )

    about = "check that a modality keeps the contract of training, features and saved models"
    verb = _add_verb(verbs, "check-modality", _check_modality, about, cli_help.CHECK_MODALITY)
    verb.add_argument("modality", metavar="MODULE:CLASS", help="the class, or speech, vision, text, signal, sound or video")
    data = "some examples, of different lengths if they may differ: any form that data.train accepts"
    verb.add_argument("--data", metavar="DATA", required=True, help=data)
    verb.add_argument("--recipe", metavar="RECIPE", help="the recipe to check it with (default: a small one)")
    verb.add_argument("overrides", metavar="key=value", nargs="*", help="a setting, such as modality.window=8")

    for name, call, about, text in (
        ("compare", _compare, "compare objectives or settings at an equal budget, over several seeds", cli_help.COMPARE),
        ("ablate", _ablate, "compare the values of one setting of the method, as the papers do", cli_help.ABLATE),
    ):
        verb = _add_verb(verbs, name, call, about, text)
        what = "a comparison file or the name of a shipped one, or recipes" if name == "compare" else "a shipped ablation"
        key = "overrides of budget, tune, seeds, reference, or of the recipes of all arms, such as data.train=clips/"
        what = f"{what}; and {key}"
        verb.add_argument("overrides", metavar="NAME|key=value", nargs="*", help=what)
        verb.add_argument("--out", metavar="DIR", type=Path, help="output folder; the same command resumes in it")
        verb.add_argument("--data", metavar="DIR", type=Path, help="the folder that paths of the file are relative to")
        verb.add_argument("--flops", metavar="N", help="short for budget.flops=N, the operations of a pre-training run")
        verb.add_argument("--seeds", metavar="N|a,b", help="seeds 1 to N, or a list such as 4,5")
        verb.add_argument(
            "--processes", metavar="N", type=_number(int, 1, 512), default=1, help="jobs at a time (default: %(default)s)"
        )
        verb.add_argument("--only", metavar="ARM", action="append", default=[], help="run this arm only; may be repeated")
        verb.add_argument("--dry-run", action="store_true", help="print steps, operations, jobs and time, and end")
        verb.add_argument("--list", action="store_true", help="list the shipped ones, and end")

    about = "convert a model between data2vec, transformers and fairseq"
    verb = _add_verb(verbs, "convert", _convert, about, cli_help.CONVERT)
    verb.add_argument("model", metavar="SOURCE", help=model)
    verb.add_argument("dest", metavar="DEST", type=Path, help="the folder or .pt to write; it must not exist yet")
    verb.add_argument("--to", required=True, choices=("data2vec", "transformers", "fairseq"), help="the format to write")
    verb.add_argument("--source", metavar="TEXT", help="origin of the weights, for the model card (default: asked for)")
    verb.add_argument("--license", metavar="NAME", help="their license, such as mit or cc-by-nc-4.0 (default: asked for)")

    verb = _add_verb(verbs, "verify", _verify, "compare a released model with its published outputs", cli_help.VERIFY)
    verb.add_argument("model", metavar="FILE", help=model)
    verb.add_argument("--input", metavar="FILE", help="the image or recording that the outputs were published for")

    about = "export a model as one ONNX or torch.export file that runs without this package"
    verb = _add_verb(verbs, "export", _export, about, cli_help.EXPORT)
    verb.add_argument("model", metavar="MODEL", help=model)
    verb.add_argument("--out", metavar="FILE", type=Path, required=True, help="FILE.onnx, or FILE.pt2 for torch.export.load")
    tolerance = "largest allowed difference from the model's own output (default: %(default)s)"
    verb.add_argument("--tolerance", metavar="X", type=_number(float, 0), default=1e-4, help=tolerance)

    about = "write the file that lets an evaluation harness load our models"
    verb = _add_verb(verbs, "adapter", _adapter, about, cli_help.ADAPTER)
    verb.add_argument("name", metavar="NAME", help="hear, mteb (with MAEB), s3prl (SUPERB) or xares")
    verb.add_argument("folder", metavar="DIR", type=Path, help="the folder to write data2vec_NAME.py to")

    verb = _add_verb(verbs, "report", _report, "build report.html of a run, finished or not")
    verb.add_argument("run", metavar="RUN", type=Path, help="the run folder")

    verb = _add_verb(verbs, "recipes", _recipes, "list the shipped recipes, or print one with every default")
    verb.add_argument("name", metavar="NAME", nargs="?", help="the recipe to print, a shipped name or a YAML file")

    device = "where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N (default: auto, or the recipe's train.device)"
    for name in ("pretrain", "finetune", "adapt", "plan"):
        verbs.choices[name].add_argument("--device", metavar="NAME", type=_parse_device, help=device)
    device = device.partition(", or the recipe's")[0] + ")"
    for name in ("evaluate", "probe", "features", "transcribe", "predict"):
        verbs.choices[name].add_argument("--device", metavar="NAME", type=_parse_device, default="auto", help=device)
    for name in sorted(verbs.choices.keys() - {"plan", "recipes", "report", "convert", "export", "adapter", "check-modality"}):
        level = "debug, info or warning: how much is shown on stderr besides results (default: %(default)s)"
        verbs.choices[name].add_argument("--log-level", choices=LEVELS, default="info", metavar="LEVEL", help=level)
        quiet = "show only results, warnings and errors; the same as --log-level warning"
        verbs.choices[name].add_argument("--quiet", action="store_const", dest="log_level", const="warning", help=quiet)

    share = "compute share i of n only, from 1/n to n/n; the last one to finish writes the result"
    for name in ("features", "predict", "evaluate", "probe"):
        verbs.choices[name].add_argument("--shard", metavar="i/n", help=share)
        precision = "of matrix products: fp32 (default), or bf16, which is faster on GPUs and rounds"
        verbs.choices[name].add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help=precision)
        compiled = "compile the Transformer blocks: slow to start, for many inputs on a GPU"
        verbs.choices[name].add_argument("--compile", action="store_true", help=compiled)
    outside = "also read files outside of the folder of the data, which links and paths in tables lead to"
    for name in ("features", "predict", "check"):
        verbs.choices[name].add_argument("--follow-links", action="store_true", help=outside)
    for name in sorted(verbs.choices.keys() - {"demo", "check-modality", "compare", "ablate", "adapter"}):
        for setting in ("modality",) if name == "check" else ("modality", "objective"):
            what = f"the {setting} class outside the package that the recipe or model names; importing it runs its module"
            what += "; or a built-in modality, such as sound" if name == "check" else ""
            verbs.choices[name].add_argument(f"--{setting}", metavar="MODULE:CLASS", help=what)
    return parser


_Plain = argparse.RawDescriptionHelpFormatter


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {printable(message)[:1000]}; '{self.prog} --help' lists what is allowed\n")


class _VerbParser(_Parser):
    """The parser of a verb, whose help ends with the settings that it takes, or with those of the recipe that the command line
    names."""

    words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.words = list(args or ())
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        lines = self._recipe_settings()
        if lines:
            self.epilog = None  # its examples, and the title of the settings of all recipes
        else:
            lines = settings_of_verb(self.prog.rpartition(" ")[2])
        return super().format_help() + "".join(f"{line}\n" for line in lines)

    def _recipe_settings(self) -> list[str]:
        """The lines of the settings of the recipe that the command line names, with its overrides; none if it names none."""
        if not {"recipe", "name"} & {action.dest for action in self._actions}:
            return []
        options = {name: action for action in self._actions for name in action.option_strings}
        words, overrides, modality = list[str](), list[str](), None
        for before, word in zip(["", *self.words], self.words, strict=False):
            option, _, value = word.partition("=") if word.startswith("--") else (before, "", word)
            if option == "--modality" and value:
                modality = value
            elif word.startswith("-") or (before in options and options[before].nargs in (None, "?")):
                continue
            elif "=" in word and not Path(word).is_file():
                overrides.append(word)
            else:
                words.append(word)
        if not words:
            return []
        from data2vec.recipe.describe import describe_recipe

        try:
            return list(describe_recipe(words[0], overrides, modality))
        except UserError as error:
            self.error(str(error))


def _add_verb(
    verbs: "argparse._SubParsersAction[_VerbParser]",
    name: str,
    call: Callable[[argparse.Namespace], None],
    summary: str,
    epilog: str = "",
) -> _VerbParser:
    description = summary[0].upper() + summary[1:] + "."
    verb = verbs.add_parser(name, help=summary, description=description, epilog=epilog, formatter_class=_Plain)
    verb.set_defaults(call=call)
    return verb


def _demo(arguments: argparse.Namespace) -> None:
    from data2vec.demo.demo import DEFAULT, run_demo

    run_demo(arguments.out, arguments.names or DEFAULT)


def _pretrain(arguments: argparse.Namespace) -> None:
    from data2vec.train.pretrain import pretrain

    a = arguments
    if a.dry_run:
        _dry_run(a)
        return
    if a.resume and not a.recipe:
        run = _resume(a, "pretrain")
    else:
        run = pretrain(a.recipe, overrides=a.overrides, out=_run_folder(a), resume=bool(a.resume), modality=a.modality)
    _print_files(run, f"data2vec probe {(run.parts or [run])[0].folder} --data LABELLED")


def _adapt(arguments: argparse.Namespace) -> None:
    from data2vec.train.adaptation.adapt import adapt, plan_adaptation

    a = arguments
    custom = {"modality": a.modality, "objective": a.objective}
    if a.model is not None and "=" in a.model and not Path(a.model).exists():  # key=value, after --resume RUN
        a.model, a.overrides = None, [a.model, *a.overrides]
    if a.dry_run:
        if a.resume is not None:
            raise UserError("--dry-run: plans a new run, and cannot be used with --resume; omit one of them")
        planned = plan_adaptation(a.model, a.data, a.overrides, a.out, a.steps, a.labels, **custom)
        if _is_main_process():
            print(planned)
        return
    wanted = {"keep": a.keep, "keep_labels": a.keep_labels, "scratch": a.scratch}
    if a.resume is None:
        result = adapt(a.model, a.data, a.overrides, a.out, a.steps, a.labels, **wanted, **custom)
    else:
        given = {"MODEL": a.model, "--data": a.data, "--steps": a.steps, "--labels": a.labels}
        if named := [name for name, value in given.items() if value is not None]:
            raise UserError(f"{named[0]}: is recorded in the run; omit it with --resume RUN, and change settings by key=value")
        result = adapt(overrides=a.overrides, out=_run_folder(a), resume=True, **wanted, **custom)
    if _is_main_process():
        print(result)
        print(f"all numbers: {result.run.folder / 'adapt.json'}")
    _print_files(result.run, f"data2vec features {result.run.folder} INPUT --out FILE")


def _resume(arguments: argparse.Namespace, verb: "Verb") -> "Run":
    """Resume the run that --resume names, by its own recipe."""
    from data2vec.train.resume import resume

    if (folder := _run_folder(arguments)) is None:
        raise UserError("--resume: names no run; name its folder, such as --resume runs/vision-v2-tiny")
    return resume(folder, arguments.overrides, arguments.modality, verb=verb)


def _run_folder(arguments: argparse.Namespace) -> str | None:
    """The folder that --out or --resume names. Raises UserError if they name two."""
    out: str | None = arguments.out
    if not isinstance(run := arguments.resume, str):
        return out
    if out is not None and Path(out).resolve() != Path(run).resolve():
        raise UserError(f"--out {out}: is not the run of --resume {run}; omit --out")
    return run


def _finetune(arguments: argparse.Namespace) -> None:
    from data2vec.train.finetune import finetune
    from data2vec.train.sweeps.sweep import sweep

    a = arguments
    if a.folds is not None:
        from data2vec.train.sweeps.cross_validation import cross_validate

        if a.sweep or a.seeds or a.resume or a.dry_run or not a.recipe:
            raise UserError(
                "--folds: needs a recipe, and cannot be used with --sweep, --seeds, --resume or --dry-run; the same command "
                "completes an interrupted cross-validation"
            )
        scores = cross_validate(a.recipe, a.folds, a.model, a.overrides, a.out, a.scratch, a.modality)
        if _is_main_process():
            print(scores)
        return
    if a.sweep or a.seeds:
        if a.scratch or a.resume or a.dry_run:
            raise UserError(
                "--scratch, --resume and --dry-run cannot be used with --sweep or --seeds; run finetune once for each seed"
            )
        if wrong := [setting for setting in a.sweep if not setting.partition("=")[2]]:
            raise UserError(f"--sweep {wrong[0]!r}: no values; write key=value,value, such as train.lr=1e-4,3e-4")
        grid = {key: values.split(",") for key, _, values in (setting.partition("=") for setting in a.sweep)}
        found = sweep(a.recipe, a.model, grid, max(a.seeds, 1), a.overrides, a.out, a.modality)
        if _is_main_process():
            print(found)
        return
    if a.dry_run:
        _dry_run(a, model=a.model, scratch=a.scratch)
        return
    if a.resume and not a.recipe:
        if a.model is not None or a.scratch:
            raise UserError("--model and --scratch are recorded in the run; omit them with --resume RUN")
        run = _resume(a, "finetune")
    else:
        settings = {"out": _run_folder(a), "resume": bool(a.resume), "scratch": a.scratch, "modality": a.modality}
        run = finetune(a.recipe, a.model, overrides=a.overrides, **settings)
    _print_files(run, f"data2vec evaluate {run.folder}")


def _print_files(run: "Run", next_command: str) -> None:
    if _is_main_process():
        for part in run.parts or [run]:
            print(f"model: {part.model}")
        if run.report.exists():
            print(f"report: {run.report}")
        print(f"next: {next_command}")


def _dry_run(arguments: argparse.Namespace, **more: object) -> None:
    """Print the plan of the run that the arguments describe."""
    from data2vec.train.planning.plan import plan

    a = arguments
    if a.resume:
        raise UserError("--dry-run: plans a new run, and cannot be used with --resume; omit one of them")
    planned = plan(a.recipe, overrides=a.overrides, out=a.out, modality=a.modality, **more)  # type: ignore[arg-type]
    if _is_main_process():
        print(planned)


def _plan(arguments: argparse.Namespace) -> None:
    from data2vec.train.planning.plan import plan

    a = arguments
    if a.json is not None:
        output_file(a.json, "--json")
    planned = plan(a.recipe, a.data, a.overrides, a.out, a.model, measure=not a.no_measure, modality=a.modality)
    if not _is_main_process():
        return
    if a.json is not None:
        from data2vec.atomic_io import write_json

        write_json(a.json, planned.to_json())
    print(planned)


def _evaluate(arguments: argparse.Namespace) -> None:
    from data2vec.tasks.finetuning.evaluate import evaluate

    a = arguments
    print(evaluate(a.model, overrides=a.overrides, tune=a.tune, modality=a.modality, **_shared(a)))


def _shared(arguments: argparse.Namespace) -> dict[str, Any]:
    """How `evaluate` and `probe` share their work. Raises UserError if they have no folder for what they share."""
    a = arguments
    if a.shard is not None or _has_several_processes():
        from data2vec.run_dir import run_of_model

        if not run_of_model(a.model).is_dir():
            raise UserError(
                f"{a.model}: is no folder, beside whose result several processes could keep their shares; save it as one: "
                f"data2vec convert {a.model} DIR --to data2vec"
            )
    return {"shard": a.shard, "precision": a.precision, "compile": a.compile}


def _predict(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from data2vec.data.sources.splits import listed
    from data2vec.tasks.prediction.predict import predict

    a = arguments
    inputs = a.inputs[0] if len(a.inputs) == 1 else [Path(name) for name in a.inputs]
    of_data = (a.split, a.batch, a.column, a.second, a.modality, a.follow_links)
    if a.out is None and (a.shard is not None or _has_several_processes()):
        raise UserError("--shard and torchrun need --out FILE: the lines of several processes would have no order")
    computed = (a.precision, a.compile, a.reading)
    predictions = predict(a.model, inputs, a.top_k, a.threshold, a.device, *of_data, *computed)
    if a.out is not None:
        print(predictions.save(a.out, a.shard))
        return
    skipped: dict[str, list[str]] = {}
    for prediction in predictions:
        name, fields = printable(prediction.name), "\t".join(map(printable, str(prediction).split("\t")))
        if prediction.error is None:
            tqdm.write(f"{name}\t{fields}", sys.stdout)
            continue
        if fields not in skipped:
            tqdm.write(f"data2vec: skipped: {name}: {fields}", sys.stderr)
        skipped.setdefault(fields, []).append(name)
    for first, *more in skipped.values():
        if more:
            print(f"data2vec: skipped as {first} is, {len(more)} more: {listed(more)}", file=sys.stderr)


def _transcribe(arguments: argparse.Namespace) -> None:
    from dataclasses import asdict

    from data2vec.recipe.task_settings import CTCDecodingSettings
    from data2vec.tasks.asr.transcribe import transcribe

    a = arguments
    if a.json is not None:
        output_file(a.json, "--json")
    decode = CTCDecodingSettings(lm=a.lm, lexicon=a.lexicon, beam=a.beam, lm_weight=a.lm_weight, word_score=a.word_score)
    lines, unreadable = [], 0
    for transcript in transcribe(a.model, a.audio, decode, device=a.device, modality=a.modality):
        lines.append(json.dumps(asdict(transcript), ensure_ascii=False))
        if transcript.error is not None:
            unreadable += 1
            print(f"data2vec: skipped: {printable(transcript.error)}", file=sys.stderr)
        elif a.words:
            for word in transcript.words:
                print(f"{printable(transcript.name)}\t{word.start:.2f}\t{word.end:.2f}\t{printable(word.text)}", flush=True)
        else:
            text = printable(transcript.text)
            print(f"{printable(transcript.name)}\t{text}" if len(a.audio) > 1 else text, flush=True)
    if a.json is not None:
        from data2vec.atomic_io import write_text

        write_text(a.json, "\n".join([*lines, ""]))
    if unreadable == len(lines):
        raise UserError("none of the audio files can be read")


def _probe(arguments: argparse.Namespace) -> None:
    from data2vec.tasks.probing.attentive import attentive_probe
    from data2vec.tasks.probing.few_shot import few_shot_probe
    from data2vec.tasks.probing.probe import probe
    from data2vec.tasks.probing.superb import superb_probe
    from data2vec.tasks.probing.token_readout import token_readout

    a = arguments
    if len(kinds := [f"--{name}" for name in ("tokens", "shots", "superb", "attentive") if getattr(a, name)]) > 1:
        raise UserError(f"{' and '.join(kinds)} are different probes; run them one after the other")
    if a.draws is not None and a.shots is None:
        raise UserError(f"--draws {a.draws} has no effect without --shots N")
    if a.layer is not None and not a.attentive:
        raise UserError(f"--layer {a.layer} has no effect without --attentive")
    if a.metric is not None and kinds:
        raise UserError(f"--metric {a.metric} has no effect with {kinds[0]}, which shows several scores")
    if a.tokens is not None or a.attentive:
        if a.shard is not None or _has_several_processes():
            raise UserError(f"{kinds[0]}: runs in one process; start it without torchrun and --shard")
        if options := ["--compile"] * a.compile + [f"--precision {a.precision}"] * (a.precision != "fp32"):
            raise UserError(f"{kinds[0]}: computes in fp32, without compilation; omit {' and '.join(options)}")
    if a.tokens is not None:
        if a.data is not None or a.labels is not None:
            raise UserError("--tokens cannot be used with --data or --labels: it needs text without labels; run probe twice")
        settings = {"overrides": a.overrides, "modality": a.modality}
        print(token_readout(a.model, a.tokens, a.valid, a.view or "neighbours", **settings))
        return
    if a.view is not None:
        raise UserError(f"--view {a.view} has no effect without --tokens TEXT")
    label = [] if a.labels is None else [f"probe.label={json.dumps(a.labels)}"]
    overrides = [*a.overrides, *label]
    settings = {"overrides": overrides, "modality": a.modality}
    shared = _shared(a)
    if a.shots is not None:
        print(few_shot_probe(a.model, a.data, a.valid, a.shots, a.draws or 10, **settings, **shared))
    elif a.superb:
        print(superb_probe(a.model, a.data, a.valid, **settings, **shared))
    elif a.attentive:
        print(attentive_probe(a.model, a.data, a.valid, layer=a.layer, **settings))
    else:
        print(probe(a.model, a.data, a.valid, metric=a.metric or "accuracy", **settings, **shared))


def _features(arguments: argparse.Namespace) -> None:
    from data2vec.tasks.extraction.extract import features

    a = arguments
    inputs = a.inputs[0] if len(a.inputs) == 1 else [Path(name) for name in a.inputs]
    of_data = (a.split, a.batch, a.column, a.modality, a.follow_links)
    computed = (a.shard, a.precision, a.compile, a.reading)
    print(features(a.model, inputs, a.out, a.layers, a.pool, a.device, *of_data, *computed))


def _number(kind: type[int] | type[float], low: float = -math.inf, high: float = math.inf) -> Callable[[str], float]:
    """What reads an option: a finite number of this kind in a range."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
            in_range = low <= value <= high and math.isfinite(value)
        except (ValueError, OverflowError):
            in_range = False
        if not in_range:
            limits = [f"of at least {low:g}"] * math.isfinite(low) + [f"of at most {high:g}"] * math.isfinite(high)
            name = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{quoted(text)} is not {' '.join([name, ' and '.join(limits)]).strip()}")
        return value

    return parse


def _parse_device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,4})?", text):
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a device; use auto, cpu, cuda or cuda:N")
    return text


def _parse_layers(text: str) -> "Layers | str":
    try:
        return [float(weight) for weight in text.split(",")] if "," in text else int(text)
    except ValueError:
        return text


def _check(arguments: argparse.Namespace) -> None:
    from data2vec.data.check.check import check, is_recordings
    from data2vec.recipe.loading import list_overrides
    from data2vec.recipe.validation_errors import explain_no_text

    a = arguments
    if a.modality is not None:
        from data2vec.conformance.check_examples import check_examples

        given = {"--kind": a.kind, "--column": a.column, "--tokenizer": a.tokenizer, "--workers": a.workers}
        if wrong := [option for option, value in given.items() if value is not None]:
            raise UserError(f"{wrong[0]}: has no effect with --modality, whose settings are key=value; omit it")
        settings = {"data.split": a.split, "data.follow_links": a.follow_links}
        settings |= {} if a.labels is None else {"data.label": a.labels}
        print(check_examples(a.modality, a.data, settings | list_overrides(a.overrides), a.recipe, a.json))
        return
    if a.kind == "recording" or (a.kind is None and is_recordings(a.data, a.follow_links)):
        from data2vec.conformance.check_recordings import check_recordings

        given = {"--tokenizer": a.tokenizer, "--workers": a.workers, "--recipe": a.recipe}
        if wrong := [option for option, value in given.items() if value is not None]:
            raise UserError(f"{wrong[0]}: has no effect on recordings; omit it")
        settings = {"data.split": a.split, "data.follow_links": a.follow_links, "data.column": a.column}
        print(check_recordings(a.data, settings | list_overrides(a.overrides), a.labels or "label", a.json))
        return
    settings = list_overrides(a.overrides)
    split, column = settings.pop("data.split", a.split), settings.pop("data.column", a.column)
    for key, value in (("data.split", split), ("data.column", column)):
        if not isinstance(value, str) and (key, value) != ("data.column", None):
            raise UserError(f"{key}: {explain_no_text(key, value)}")
    if settings or a.recipe is not None:
        raise UserError(
            f"{next(iter(settings), '--recipe')}: has no effect without --modality, but for recordings; omit it, or add --kind "
            "recording"
        )
    print(check(a.data, a.kind, split, a.tokenizer, a.workers, a.json, column, a.labels or "label", a.follow_links))


def _check_modality(arguments: argparse.Namespace) -> None:
    from data2vec.conformance.check_modality import check_modality

    a = arguments
    report = check_modality(a.modality, a.data, a.overrides, a.recipe)
    print(report)
    if failed := report.failed:
        raise UserError(f"{report.modality} fails {len(failed)} of {len(report.results)} checks: {', '.join(failed)}")


def _compare(arguments: argparse.Namespace) -> None:
    from data2vec.comparison.shipped import comparison_names, comparison_summary, is_comparison

    if arguments.list:
        for name in comparison_names():
            print(f"{name:32} {comparison_summary(name)}")
        return
    names = [word for word in arguments.overrides if "=" not in word]
    _run_comparison(arguments, names[0] if len(names) == 1 and is_comparison(names[0]) else names)


def _ablate(arguments: argparse.Namespace) -> None:
    from data2vec.comparison.shipped import comparison_names, comparison_summary
    from data2vec.errors import did_you_mean

    known = [name.removeprefix("ablations/") for name in comparison_names() if name.startswith("ablations/")]
    if arguments.list:
        for name in known:
            print(f"{name:24} {comparison_summary(f'ablations/{name}')}")
        return
    names = [word for word in arguments.overrides if "=" not in word]
    if len(names) != 1 or names[0] not in known:
        hint = did_you_mean(names[0], known) if names else ""
        raise UserError(f"name one ablation, not {' '.join(names) or 'none'}{hint}; one of {', '.join(known)}")
    _run_comparison(arguments, f"ablations/{names[0]}")


def _run_comparison(arguments: argparse.Namespace, comparison: str | list[str]) -> None:
    from data2vec.comparison.compare import build_plan, compare, describe_plan

    a = arguments
    if a.out is None:
        raise UserError("--out: is missing; name the output folder, such as --out comparison")
    overrides = [word for word in a.overrides if "=" in word]
    overrides += [f"budget.flops={a.flops}"] if a.flops else []
    overrides += [f"seeds={_parse_seeds(a.seeds)}"] if a.seeds else []
    if a.dry_run:
        print(describe_plan(build_plan(comparison, a.out, a.data, overrides, a.only, a.processes), a.only))
        return
    result = compare(comparison, a.out, a.data, overrides, a.only, a.processes)
    print(result)
    print(f"all scores: {a.out / 'results.json'}")
    if failed := sum(len(arm.to_repeat) for arm in result.arms):
        raise RunStopped(f"{failed} jobs failed, see above; the same command tries them again")


def _parse_seeds(text: str) -> list[int]:
    try:
        seeds = [int(word) for word in text.split(",")] if "," in text else list(range(1, min(int(text), 10**4) + 1))
    except ValueError:
        raise UserError(f"--seeds {text}: is neither a number nor a list of numbers, such as 4,5") from None
    if not 1 <= len(seeds) <= 1000:
        raise UserError(f"--seeds {text}: give 1 to 1000 seeds")
    return seeds


def _convert(arguments: argparse.Namespace) -> None:
    from data2vec.interop.convert import convert
    from data2vec.interop.load import load
    from data2vec.interop.verify import published_output, verify

    model = load(arguments.model, arguments.modality)
    source = arguments.source or model.source or _ask("Source of the weights, for the model card")
    license = arguments.license or model.license or _ask("License of the weights, such as mit or cc-by-nc-4.0")
    print(convert(model, arguments.dest, arguments.to, source, license))
    published = published_output(model)
    if published is not None and published.input is None:
        print(f"if this is the released model: {verify(arguments.dest)}")
    for name, value in (("source", source), ("license", license)):
        if not value:
            print(f"no {name} recorded in the model card; set one with --{name}")


def _ask(question: str) -> str | None:
    """The answer from the terminal; None if it is empty or there is no terminal."""
    return input(f"{question} (Enter if unknown): ").strip() or None if sys.stdin.isatty() else None


def _verify(arguments: argparse.Namespace) -> None:
    from data2vec.interop.verify import verify

    result = verify(arguments.model, arguments.input)
    print(result)
    if not result.passed:
        raise RunStopped(
            f"{arguments.model}: does not give the published outputs; it is damaged, or another model of the same size"
        )


def _export(arguments: argparse.Namespace) -> None:
    from data2vec.interop.export.export import export

    print(export(arguments.model, arguments.out, arguments.tolerance, arguments.modality))


def _adapter(arguments: argparse.Namespace) -> None:
    from data2vec.interop.adapters.write import write_adapter

    print(write_adapter(arguments.name, arguments.folder))


def _report(arguments: argparse.Namespace) -> None:
    from data2vec.report.page import build_report

    print(build_report(arguments.run, arguments.modality))


def _recipes(arguments: argparse.Namespace) -> None:
    from data2vec.console.quantities import format_count, format_duration
    from data2vec.recipe.shipped import (
        GPU_FLOPS,
        RATES,
        is_supervised,
        recipe_names,
        recipe_parameters,
        recipe_summary,
        recipe_time,
    )

    if arguments.name:
        from data2vec.recipe.loading import load_recipe

        print(load_recipe(arguments.name, modality=arguments.modality).to_yaml(), end="")
        return
    parameters = recipe_parameters()
    groups: dict[str, list[str]] = {}
    for name in recipe_names():
        task = "fine-tuning" if is_supervised(name) else "pre-training"
        groups.setdefault(f"{name.partition('/')[0]}, {task}", []).append(name)
    for title in sorted(groups, key=lambda title: title.replace("pre-training", "")):  # pre-training first
        print(f"{title}:")
        for name in groups[title]:
            size = format_count(parameters[name]) if name in parameters else ""
            time = f"{format_duration(found[1])} {found[0]}" if (found := recipe_time(name)) else ""
            print(f"  {name:26} {size:>12} {time:>13}  {recipe_summary(name)}")
    rates = " and ".join(f"{rate:.0e} for {size}" for size, (_, rate) in RATES.items())
    print(
        "Weights are of the encoder. Times are of all steps on one device, computed from the operations of the recipe, at\n"
        f"{GPU_FLOPS:.0e} a second on a GPU (none was measured), and on two CPU cores at {rates} recipes.\n"
        "'data2vec plan RECIPE data.train=DATA' measures a step on this machine, also of recipes whose data decides the time."
    )
