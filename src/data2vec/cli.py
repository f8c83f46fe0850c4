"""The command `data2vec`: verbs, each a thin call to one public function.

Exit status: 0 success; 1 the run, the machine or the program failed; 2 a mistake that the user can mend, told on stderr
in a line that starts with "data2vec: error:"; 130, 143 or 138 stopped by Ctrl-C, SIGTERM or SIGUSR1, after a checkpoint.
"""

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data2vec import __version__, cli_help
from data2vec.errors import Interrupted, RunStopped, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own). Returns the exit status."""
    # Before torch comes: threads that wait spinning make a busy machine several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = _parser()
    # argparse gives up on a key=value that comes after an option
    arguments, rest = parser.parse_known_args(argv)
    if wrong := [word for word in rest if word.startswith("-") or not hasattr(arguments, "overrides")]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)} ('data2vec VERB --help' lists what there is)")
    if rest:
        arguments.overrides += rest
    speaks = os.environ.get("RANK", "0") == "0"
    try:
        arguments.call(arguments)
        sys.stdout.flush()
        return 0
    except UserError as error:
        return _tell(speaks, "error", str(error), 2)
    except RunStopped as error:
        return _tell(speaks, "stopped", str(error), 128 + error.signal if isinstance(error, Interrupted) else 1)
    except KeyboardInterrupt:
        return _tell(speaks, "stopped", "by Ctrl-C", 130)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("DATA2VEC_TRACEBACK"):
            raise
        what = " ".join(str(error).split())[:300]
        where = "run with DATA2VEC_TRACEBACK=1 to see where"
        return _tell(True, "failed", f"{type(error).__name__}: {what} ({where})", 1)


def _tell(speaks: bool, what: str, text: str, status: int) -> int:
    for line in text.splitlines() if speaks else ():
        print(f"data2vec: {what}: {line}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    about = "Pre-train one Transformer by one self-supervised method on speech, images or text."
    parser = argparse.ArgumentParser("data2vec", description=about, epilog=cli_help.GUIDE, formatter_class=_Plain)
    parser.add_argument("--version", action="version", version=f"data2vec {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=_Verb)

    verb = _verb(verbs, "demo", _demo, "pre-train a tiny model on images, text and speech that need no download")
    verb.add_argument("--out", type=Path, default=Path("demo"), help="folder for what it makes (default: %(default)s)")

    verb = _verb(verbs, "pretrain", _pretrain, "learn from unlabelled data", cli_help.PRETRAIN, _settings_of_pretrain)
    verb.add_argument("recipe", metavar="RECIPE", help="a shipped recipe ('data2vec recipes' lists them) or a YAML file")
    verb.add_argument("--out", metavar="RUN", type=Path, help="the run folder (default: runs/ and the recipe's name)")
    verb.add_argument("--resume", action="store_true", help="go on after the newest whole checkpoint of RUN")
    verb.add_argument("overrides", metavar="key=value", nargs="*", help="a setting, such as train.lr=1e-3")

    verb = _verb(verbs, "finetune", _finetune, "fine-tune a model on labelled data", cli_help.FINETUNE, _settings_of_finetune)
    verb.add_argument("recipe", metavar="RECIPE", help="a shipped recipe (see 'data2vec recipes'), or a YAML file")
    verb.add_argument("--model", metavar="MODEL", help="what to start from (default: fresh weights)")
    verb.add_argument("--scratch", action="store_true", help="take only the model's shape, with fresh weights, to compare")
    verb.add_argument("--out", metavar="DIR", type=Path, help="the run folder (default: runs/ and the recipe's name)")
    verb.add_argument("--resume", action="store_true", help="go on with the run in --out")
    sweep = "several values of a setting, each in a run of its own; may be given again for another setting"
    verb.add_argument("--sweep", metavar="key=a,b,c", action="append", default=[], help=sweep)
    verb.add_argument("--seeds", metavar="N", type=int, default=0, help="do it with seeds 1 to N: median and spread")
    verb.add_argument("overrides", metavar="key=value", nargs="*", help="a setting, such as train.steps=4000")

    verb = _verb(verbs, "evaluate", _evaluate, "measure a fine-tuned model on labelled data", cli_help.EVALUATE)
    verb.add_argument("model", metavar="MODEL|RUN", help="a fine-tuned run or model")
    tune = "try so many weights of the beam search on this data, and take the best (default: none)"
    verb.add_argument("--tune", metavar="N", type=int, default=0, help=tune)
    verb.add_argument("overrides", metavar="key=value", nargs="*", help="a setting, such as data.valid=test/")

    verb = _verb(
        verbs, "transcribe", _transcribe, "write down what is said in recordings, by a fine-tuned model", cli_help.TRANSCRIBE
    )
    verb.add_argument("model", metavar="MODEL", help="a run or model fine-tuned by CTC")
    verb.add_argument("audio", metavar="AUDIO", nargs="+", help="files, of any length")
    verb.add_argument("--words", action="store_true", help="a line for each word, with the seconds at which it begins and ends")
    verb.add_argument("--json", metavar="FILE", type=Path, help="also write all of it as a JSON object a line")
    verb.add_argument("--lm", metavar="FILE", help="an n-gram language model, ARPA or a binary of KenLM, for beam search")
    verb.add_argument("--lexicon", metavar="FILE", help="words that may be found (default: those of the language model)")
    verb.add_argument("--beam", metavar="N", type=int, default=50, help="hypotheses that are kept (default: %(default)s)")
    verb.add_argument("--lm-weight", metavar="X", type=float, default=2.0, help="of the language model (default: %(default)s)")
    verb.add_argument("--word-score", metavar="X", type=float, default=-1.0, help="added for a word (default: %(default)s)")
    verb.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")

    verb = _verb(verbs, "probe", _probe, "measure frozen features by simple classifiers", cli_help.PROBE, _settings_of_probe)
    verb.add_argument("model", metavar="MODEL", type=Path, help="a run folder or a model folder")
    verb.add_argument("--data", metavar="DATA", help="labelled data to fit the classifiers on")
    verb.add_argument("--valid", metavar="DATA", help="labelled data to measure them on (default: a fifth of --data, held out)")
    verb.add_argument("--labels", metavar="COLUMN", help="the column that holds the label")
    verb.add_argument("overrides", metavar="key=value", nargs="*", help="a setting, such as probe.knn_k=20")

    verb = _verb(
        verbs, "features", _features, "write what the encoder makes of files or a data set into one file", cli_help.FEATURES
    )
    verb.add_argument("model", metavar="MODEL", help="a run folder, a model folder, or what else data2vec.load opens")
    verb.add_argument("inputs", metavar="INPUT", nargs="+", help="files; or one data set, as data.train may be")
    verb.add_argument("--out", metavar="FILE", type=Path, required=True, help="a .safetensors, .npy or .parquet file")
    layers = "last (default), all, mean; a block, counted from 1 or from the end (-1); or weights, one for each, as 0,0.5,0.5"
    verb.add_argument("--layers", metavar="LAYERS", type=_layers, default="last", help=layers)
    verb.add_argument("--pool", action="store_true", help="the mean over an input's positions, one vector for each")
    verb.add_argument("--split", default="train", help="which split to take of a data set with several (default: %(default)s)")
    verb.add_argument("--device", default="auto", help="cpu, cuda, cuda:N (default: a GPU where there is one)")
    verb.add_argument("--batch", metavar="N", type=int, help="compute at most N positions at a time (default: what is fast)")

    verb = _verb(verbs, "check", _check, "read a whole data set and report its contents and unreadable files", cli_help.CHECK)
    verb.add_argument("data", metavar="DATA", help="what data.train may be: a folder, a file, an archive, a hub data set")
    verb.add_argument("--kind", choices=("audio", "image", "text"), help="what to read (default: what is there)")
    verb.add_argument("--split", default="train", help="which split to take of a data set with several (default: %(default)s)")
    verb.add_argument("--tokenizer", metavar="FOLDER", help="count tokens by this one (default: by one trained on the text)")
    verb.add_argument("--workers", metavar="N", type=int, help="processes that read (default: one for each core)")
    verb.add_argument("--json", metavar="FILE", type=Path, help="write everything that is found, with all names")

    verb = _verb(verbs, "convert", _convert, "write a model in the form of another library, or of this one", cli_help.CONVERT)
    verb.add_argument(
        "model", metavar="SOURCE", help="a run, a model folder, an official .pt, or the name of a model on the hub"
    )
    verb.add_argument("dest", metavar="DEST", type=Path, help="the folder or .pt to write; it must not be there yet")
    verb.add_argument("--to", required=True, choices=("data2vec", "transformers", "fairseq"), help="the form to write")
    verb.add_argument("--source", metavar="TEXT", help="where the weights come from, for the model card (else asked for)")
    verb.add_argument("--license", metavar="NAME", help="their licence, such as mit or cc-by-nc-4.0, likewise")

    about = "write a model as one file that takes raw input and runs without this package"
    verb = _verb(verbs, "export", _export, about, cli_help.EXPORT)
    verb.add_argument("model", metavar="MODEL", help="a run folder, a model folder, a file or a hub name")
    verb.add_argument("--out", metavar="FILE", type=Path, required=True, help="FILE.onnx; or FILE.pt2, for torch.export.load")
    tolerance = "the largest difference from the model that is let pass (default: %(default)s)"
    verb.add_argument("--tolerance", metavar="X", type=float, default=1e-4, help=tolerance)

    verb = _verb(verbs, "report", _report, "draw report.html of a run, finished or not, on one page for a browser")
    verb.add_argument("run", metavar="RUN", type=Path, help="the run folder")

    verb = _verb(verbs, "recipes", _recipes, "list the shipped recipes, or print one complete")
    verb.add_argument("name", metavar="NAME", nargs="?", help="print this one, with every default written out")
    return parser


_Plain = argparse.RawDescriptionHelpFormatter


class _Verb(argparse.ArgumentParser):
    """A verb whose help ends in what `settings` gives, made only when it is asked for."""

    settings: Callable[[], Iterator[str]] | None = None

    def format_help(self) -> str:
        return super().format_help() + "".join(f"{line}\n" for line in (self.settings() if self.settings else ()))


def _verb(
    verbs: Any,
    name: str,
    call: Callable[[argparse.Namespace], None],
    summary: str,
    epilog: str = "",
    settings: Callable[[], Iterator[str]] | None = None,
) -> _Verb:
    about = summary[0].upper() + summary[1:] + "."
    verb: _Verb = verbs.add_parser(name, help=summary, description=about, epilog=epilog, formatter_class=_Plain)
    verb.set_defaults(call=call)
    verb.settings = settings
    return verb


def _demo(arguments: argparse.Namespace) -> None:
    from data2vec.demo.demo import run_demo

    run_demo(arguments.out)


def _pretrain(arguments: argparse.Namespace) -> None:
    from data2vec.train.trainer import pretrain

    run = pretrain(arguments.recipe, overrides=arguments.overrides, out=arguments.out, resume=arguments.resume)
    if os.environ.get("RANK", "0") == "0":
        print(f"trained: {run.model}")
        if run.report.exists():
            print(f"how it went: {run.report}")
        print(f"next: data2vec probe {run.folder} --data LABELLED")


def _finetune(arguments: argparse.Namespace) -> None:
    from data2vec.train.finetune import finetune
    from data2vec.train.sweep import sweep

    a = arguments
    if a.sweep or a.seeds:
        grid = {key: values.split(",") for key, _, values in (each.partition("=") for each in a.sweep)}
        print(sweep(a.recipe, a.model, grid, max(a.seeds, 1), a.overrides, a.out))
        return
    run = finetune(a.recipe, a.model, overrides=a.overrides, out=a.out, resume=a.resume, scratch=a.scratch)
    if os.environ.get("RANK", "0") == "0":
        print(f"fine-tuned: {run.model}")
        if run.report.exists():
            print(f"how it went: {run.report}")
        print(f"next: data2vec evaluate {run.folder}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from data2vec.tasks.finetuning.evaluate import evaluate

    print(evaluate(arguments.model, overrides=arguments.overrides, tune=arguments.tune))


def _transcribe(arguments: argparse.Namespace) -> None:
    from dataclasses import asdict

    from data2vec.recipe.task_settings import DecodeSettings
    from data2vec.tasks.asr.transcribe import transcribe

    a = arguments
    decode = DecodeSettings(lm=a.lm, lexicon=a.lexicon, beam=a.beam, lm_weight=a.lm_weight, word_score=a.word_score)
    lines, bad = [], 0
    for each in transcribe(a.model, a.audio, decode, device=a.device):
        lines.append(json.dumps(asdict(each), ensure_ascii=False))
        if each.error is not None:
            bad += 1
            print(f"data2vec: left out: {each.error}", file=sys.stderr)
        elif a.words:
            print(*(f"{each.name}\t{word.start:.2f}\t{word.end:.2f}\t{word.text}" for word in each.words), sep="\n", flush=True)
        else:
            print(f"{each.name}\t{each.text}" if len(a.audio) > 1 else each.text, flush=True)
    if a.json is not None:
        a.json.write_text("\n".join([*lines, ""]), encoding="utf-8")
    if bad == len(lines):
        raise UserError("none of the recordings can be read")


def _probe(arguments: argparse.Namespace) -> None:
    from data2vec.tasks.probing.probe import probe

    label = [] if arguments.labels is None else [f"probe.label={json.dumps(arguments.labels)}"]
    print(probe(arguments.model, arguments.data, arguments.valid, [*arguments.overrides, *label]))


def _features(arguments: argparse.Namespace) -> None:
    from data2vec.tasks.extraction.extract import features

    a = arguments
    inputs = a.inputs[0] if len(a.inputs) == 1 else [Path(each) for each in a.inputs]
    print(features(a.model, inputs, a.out, a.layers, a.pool, a.device, a.split, a.batch))


def _layers(words: str) -> Any:
    try:
        return [float(weight) for weight in words.split(",")] if "," in words else int(words)
    except ValueError:
        return words


def _check(arguments: argparse.Namespace) -> None:
    from data2vec.data.check.check import check

    a = arguments
    print(check(a.data, kind=a.kind, split=a.split, tokenizer=a.tokenizer, workers=a.workers, out=a.json))


def _convert(arguments: argparse.Namespace) -> None:
    from data2vec.interop.convert import convert
    from data2vec.interop.load import load

    model = load(arguments.model)
    source = arguments.source or model.source or _ask("Where do these weights come from?")
    license = arguments.license or model.license or _ask("Under which licence are they, such as mit or cc-by-nc-4.0?")
    print(convert(model, arguments.dest, arguments.to, source, license))
    for name, value in (("source", source), ("license", license)):
        if not value:
            print(f"the {name} is not told in the model card; tell it by --{name}")


def _ask(question: str) -> str | None:
    """The answer of a person, where there is one and they know."""
    return input(f"{question} (Enter: not known) ").strip() or None if sys.stdin.isatty() else None


def _export(arguments: argparse.Namespace) -> None:
    from data2vec.interop.export.export import export

    print(export(arguments.model, arguments.out, arguments.tolerance))


def _report(arguments: argparse.Namespace) -> None:
    from data2vec.report import page

    print(page.build(arguments.run))


def _recipes(arguments: argparse.Namespace) -> None:
    from data2vec.recipe.loading import load_recipe, recipe_names, recipe_summary

    if arguments.name:
        print(load_recipe(arguments.name).to_yaml(), end="")
        return
    for name in recipe_names():
        print(f"{name:26} {recipe_summary(name)}")


def _settings_of_pretrain() -> Iterator[str]:
    from data2vec.recipe.recipe import MODALITIES, Recipe, recipe_class
    from data2vec.settings import iter_settings, settings_classes

    for modality in MODALITIES:
        sections = recipe_class(modality).model_fields
        for name in ("modality", "data"):
            kind = sections[name].annotation
            yield from _section(f"{name} ({modality}): {sections[name].description}", iter_settings(kind, f"{name}."))  # type: ignore[arg-type]
    for name, section in Recipe.model_fields.items():
        if name in ("modality", "data"):
            continue
        if not settings_classes(section.annotation):
            yield from _section("", [(name, section)])
            continue
        told: set[str] = set()  # of what the versions of the method have in common
        for kind in settings_classes(section.annotation):
            settings = [(key, field) for key, field in iter_settings(kind, f"{name}.") if key not in told]
            title = f"{name}: {section.description}" if not told else f"{name} ({kind.model_fields['name'].default})"
            told.update(key for key, _ in settings)
            yield from _section(title, settings)


def _settings_of_finetune() -> Iterator[str]:
    from data2vec.recipe.task_settings import ClassificationSettings, RecognitionSettings
    from data2vec.settings import iter_settings

    for kind in (RecognitionSettings, ClassificationSettings):
        title = f"objective ({kind.model_fields['name'].default})"
        yield from _section(title, iter_settings(kind, "objective."))


def _settings_of_probe() -> Iterator[str]:
    from data2vec.recipe.task_settings import ProbeSettings
    from data2vec.settings import iter_settings

    yield from _section("probe", iter_settings(ProbeSettings, "probe."))


def _section(title: str, settings: Any) -> Iterator[str]:
    """A line or more for each setting: its key, its default, what it does."""
    from data2vec.settings import Settings

    yield from ("", title)
    for key, field in settings:
        default = field.get_default(call_default_factory=True)
        plain = str(default).lower() if isinstance(default, bool | None) else default
        shown = "" if isinstance(default, Settings) else f" ({plain})"
        yield from textwrap.wrap(
            f"{key}{shown}  {field.description or ''}", 118, initial_indent="  ", subsequent_indent=" " * 8
        )
