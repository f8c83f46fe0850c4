"""Beam search with a lexicon and an n-gram language model, by flashlight-text."""

from collections.abc import Iterable, Sequence
from copy import copy
from math import inf
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from data2vec.errors import UserError
from data2vec.recipe.beam_settings import BeamSettings
from data2vec.tasks.asr import lexicon as lexicons
from data2vec.tasks.asr.decoding import IMPOSSIBLE, Hypothesis, Word, log_probabilities, spoken
from data2vec.tasks.asr.vocabulary import BLANK, Alphabet


class BeamSearch:
    """The best hypothesis by the acoustic model and all that is added: log p(path) + lm_weight · log10 p(words) +
    word_score · words + silence_score · frames of the separator.

    `lm`: an ARPA file or a binary file of KenLM. `lexicon`: see `lexicon.read`; without one it is the words of the ARPA file,
    or, if these are labels, the language model is one of labels, and any text can be found. `settings`: see `BeamSettings`.

    Raises UserError for files that cannot be read, settings out of range, and where flashlight-text is not installed."""

    def __init__(
        self,
        alphabet: Alphabet,
        lm: str | Path | None = None,
        lexicon: str | Path | Iterable[str] | None = None,
        **settings: Any,
    ):
        self.alphabet, self.settings = alphabet, _checked(settings)
        model = None if lm is None else Path(lm)
        if model is not None and not model.is_file():
            raise UserError(f"lm: there is no file {model}; give an ARPA file, or a binary file of KenLM")
        entries = None if lexicon is None else lexicons.read(lexicon, alphabet)
        if entries is None and model is not None and not set(lexicons.words(model)) <= set(alphabet.labels):
            entries = lexicons.of_model(model, alphabet)
        self.words = list(alphabet.labels if entries is None else dict.fromkeys(word for word, _ in entries))
        self._lm = _language_model(model, self.words)
        self._trie = None if entries is None else self._spell(entries)
        self._decoder = self._build()

    def weighing(self, **settings: Any) -> "BeamSearch":
        """The same search with other settings; nothing is read again."""
        other = copy(self)
        other.settings = _checked(dict(self.settings) | settings)
        other._decoder = other._build()
        return other

    def __call__(self, logits: Tensor, lengths: Sequence[int] | Tensor, seconds_per_position: float = 1) -> list[Hypothesis]:
        """`logits` (B, T, V), of which the first `lengths` (B) frames are there; times as of `greedy`."""
        scores = log_probabilities(logits, self.alphabet)
        return [self._search(row[: int(n)], seconds_per_position) for row, n in zip(scores, lengths, strict=True)]

    def _search(self, scores: Tensor, scale: float) -> Hypothesis:
        emissions = self._prepare(scores).contiguous().numpy()
        best = self._decoder.decode(emissions.ctypes.data, *emissions.shape)[0]
        path = [label % len(self.alphabet.labels) for label in best.tokens[1:-1]][: len(scores)]
        score = best.score
        if self._trie is None:
            words = spoken(path, self.alphabet, scale)
        else:
            words = self._heard(best.words[1:-1], path, scale)
            if self.alphabet.separator is not None:
                score -= self.settings.silence_score  # of the frame that `_prepare` adds
        return Hypothesis(" ".join(word.text for word in words), score, words)

    def _prepare(self, scores: Tensor) -> Tensor:
        """With a lexicon, two things that its words, each ended by a label, need of the frames (T, V).

        A separator behind the last frame, for heads that do not end a text with one. And where there is no separator, every
        label twice: flashlight holds the last label of a word for one frame only, so that a word is also spelled with a
        second last label, which the second half of the columns is for. Behind them is the separator that there is not."""
        if self._trie is None:
            return scores
        if self.alphabet.separator is None:
            return torch.cat([scores, scores, torch.full_like(scores[:, :1], IMPOSSIBLE)], 1)
        end = scores.new_full((1, scores.shape[1]), IMPOSSIBLE)
        end[0, self.alphabet.separator] = 0
        return torch.cat([scores, end])

    def _heard(self, ends: Sequence[int], path: Sequence[int], scale: float) -> tuple[Word, ...]:
        """The words that end at some frames (index or -1), with their times."""
        found, start = [], 0
        silent = (BLANK, self.alphabet.separator)
        for last, word in enumerate(ends):
            if word >= 0:
                frames = [i for i in range(start, min(last + 1, len(path))) if path[i] not in silent]
                text = self.words[word] if word < len(self.words) else self.alphabet.decode(path[i] for i in frames)
                found.append(Word(text, frames[0] * scale, (frames[-1] + 1) * scale))
                start = last + 1
        return tuple(found)

    def _spell(self, lexicon: lexicons.Lexicon) -> Any:
        from flashlight.lib.text.decoder import SmearingMode, Trie

        V, separator = len(self.alphabet.labels), self.alphabet.separator
        trie = Trie(2 * V + 1, 2 * V if separator is None else separator)
        begin = self._lm.start(False)
        scores = [self._lm.score(begin, i)[1] for i in range(len(self.words) + 1)]
        if set(scores) == {scores[-1]} != {0.0}:
            raise UserError(
                f"lm: it knows no word of the lexicon, such as {self.words[0]!r}; are its words written differently?"
            )
        index = {word: i for i, word in enumerate(self.words)}
        for word, labels in lexicon:
            trie.insert(labels, i := index[word], scores[i])
            if separator is None:
                trie.insert([*labels, labels[-1] + V], i, scores[i])
        trie.smear(SmearingMode.MAX)
        return trie

    def _build(self) -> Any:
        from flashlight.lib.text import decoder

        s, V, separator = self.settings, len(self.alphabet.labels), self.alphabet.separator
        beam = (s.beam, s.token_beam or 2 * V + 1, s.threshold, s.lm_weight)
        CTC = decoder.CriterionType.CTC
        if self._trie is None:
            options = decoder.LexiconFreeDecoderOptions(*beam, s.silence_score, s.log_add, CTC)
            return decoder.LexiconFreeDecoder(options, self._lm, V if separator is None else separator, BLANK, [])
        unknown = -inf if s.unknown_score is None else s.unknown_score
        options = decoder.LexiconDecoderOptions(*beam, s.word_score, unknown, s.silence_score, s.log_add, CTC)
        silence = 2 * V if separator is None else separator
        return decoder.LexiconDecoder(options, self._trie, self._lm, silence, BLANK, len(self.words), [], False)


def _checked(settings: dict[str, Any]) -> BeamSettings:
    try:
        return BeamSettings(**settings)
    except ValidationError as error:
        raise UserError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())) from None


def _language_model(path: Path | None, words: list[str]) -> Any:
    try:
        from flashlight.lib.text.decoder import ZeroLM
        from flashlight.lib.text.decoder.kenlm import KenLM
        from flashlight.lib.text.dictionary import Dictionary
    except ImportError:
        raise UserError(
            "a beam search needs flashlight-text: pip install data2vec[decode], with Python 3.11 or 3.12; greedy needs nothing"
        ) from None
    if path is None:
        return ZeroLM()
    dictionary = Dictionary()
    for i, word in enumerate(dict.fromkeys([*words, "<unk>"])):
        dictionary.add_entry(word, i)
    try:
        return KenLM(str(path), dictionary)
    except RuntimeError as error:
        raise UserError(f"lm: {path} is neither an ARPA file nor a binary file of KenLM: {error}") from None
