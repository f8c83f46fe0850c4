"""Beam search with a lexicon and an n-gram language model (flashlight-text)."""

from collections.abc import Iterable, Sequence
from copy import copy
from math import inf
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from data2vec.errors import UserError
from data2vec.recipe.task_settings import BeamSettings
from data2vec.settings import JsonDict
from data2vec.tasks.asr.greedy import IMPOSSIBLE, Hypothesis, Word, log_probabilities, words_with_times
from data2vec.tasks.asr.lexicon import Lexicon, arpa_words, lexicon_from_arpa, load_lexicon
from data2vec.tasks.asr.vocabulary import BLANK, CTCVocabulary


class BeamSearch:
    """Finds the hypothesis with the highest log p(path) + lm_weight · log10 p(words) + word_score · words + silence_score ·
    frames of the separator.

    `lm`: an ARPA file or a KenLM binary. `lexicon`: see `load_lexicon`; by default the words of the ARPA file. If those are
    the labels themselves, it is a language model of labels and any text can be output. `settings`: see `BeamSettings`.

    Raises UserError for unreadable files, settings out of range, and if flashlight-text is not installed."""

    def __init__(
        self,
        vocabulary: CTCVocabulary,
        lm: str | Path | None = None,
        lexicon: str | Path | Iterable[str] | None = None,
        **settings: Any,
    ):
        self.vocabulary, self.settings = vocabulary, _validate(settings)
        model = None if lm is None else Path(lm)
        if model is not None and not model.is_file():
            raise UserError(f"lm: there is no file {model}; give an ARPA file or a KenLM binary")
        entries = None if lexicon is None else load_lexicon(lexicon, vocabulary)
        if entries is None and model is not None and not set(arpa_words(model)) <= set(vocabulary.labels):
            entries = lexicon_from_arpa(model, vocabulary)
        self.words = list(vocabulary.labels if entries is None else dict.fromkeys(word for word, _ in entries))
        self._lm = _load_language_model(model, self.words)
        self._trie = None if entries is None else self._build_trie(entries)
        self._decoder = self._build_decoder()

    def with_weights(self, **settings: Any) -> "BeamSearch":
        """The same search with other settings; language model and lexicon are not loaded again."""
        other = copy(self)
        other.settings = _validate(dict(self.settings) | settings)
        other._decoder = other._build_decoder()
        return other

    def __call__(self, logits: Tensor, lengths: Sequence[int] | Tensor, seconds_per_position: float = 1) -> list[Hypothesis]:
        """The best hypothesis of each row; arguments as of `GreedyDecoder`."""
        scores = log_probabilities(logits, self.vocabulary)
        return [self._search(row[: int(n)], seconds_per_position) for row, n in zip(scores, lengths, strict=True)]

    def _search(self, scores: Tensor, scale: float) -> Hypothesis:
        emissions = self._prepare(scores).contiguous().numpy()
        best = self._decoder.decode(emissions.ctypes.data, *emissions.shape)[0]
        path = [label % len(self.vocabulary.labels) for label in best.tokens[1:-1]][: len(scores)]
        score = best.score
        if self._trie is None:
            words = words_with_times(path, self.vocabulary, scale)
        else:
            words = self._words_from_lexicon_path(best.words[1:-1], path, scale)
            if self.vocabulary.separator is not None:
                score -= self.settings.silence_score  # of the frame that `_prepare` adds
        return Hypothesis(" ".join(word.text for word in words), score, words)

    def _prepare(self, scores: Tensor) -> Tensor:
        """Scores (T, V) adapted to a lexicon, in which every word ends with a label.

        With a separator: a separator frame is appended, for heads that do not end a text with one. Without: flashlight
        allows the last label of a word for one frame only, so every word is also spelled with a duplicate of its last label;
        columns V to 2V - 1 are the duplicates, and column 2V is the separator that is never output."""
        if self._trie is None:
            return scores
        if self.vocabulary.separator is None:
            return torch.cat([scores, scores, torch.full_like(scores[:, :1], IMPOSSIBLE)], 1)
        end = scores.new_full((1, scores.shape[1]), IMPOSSIBLE)
        end[0, self.vocabulary.separator] = 0
        return torch.cat([scores, end])

    def _words_from_lexicon_path(self, ends: Sequence[int], path: Sequence[int], scale: float) -> tuple[Word, ...]:
        """The words with their times; `ends`: for each frame, the index of the word that ends there, or -1."""
        words, start = [], 0
        silent = (BLANK, self.vocabulary.separator)
        for last, word in enumerate(ends):
            if word >= 0:
                frames = [i for i in range(start, min(last + 1, len(path))) if path[i] not in silent]
                text = self.words[word] if word < len(self.words) else self.vocabulary.decode(path[i] for i in frames)
                words.append(Word(text, frames[0] * scale, (frames[-1] + 1) * scale))
                start = last + 1
        return tuple(words)

    def _build_trie(self, lexicon: Lexicon) -> Any:
        from flashlight.lib.text.decoder import SmearingMode, Trie

        V, separator = len(self.vocabulary.labels), self.vocabulary.separator
        trie = Trie(2 * V + 1, 2 * V if separator is None else separator)
        begin = self._lm.start(False)
        scores = [self._lm.score(begin, i)[1] for i in range(len(self.words) + 1)]
        if set(scores) == {scores[-1]} != {0.0}:
            raise UserError(
                f"lm: it contains no word of the lexicon, such as {self.words[0]!r}; check case and spelling of its words"
            )
        index = {word: i for i, word in enumerate(self.words)}
        for word, labels in lexicon:
            trie.insert(labels, i := index[word], scores[i])
            if separator is None:
                trie.insert([*labels, labels[-1] + V], i, scores[i])
        trie.smear(SmearingMode.MAX)
        return trie

    def _build_decoder(self) -> Any:
        from flashlight.lib.text import decoder

        s, V, separator = self.settings, len(self.vocabulary.labels), self.vocabulary.separator
        beam = (s.beam, s.token_beam or 2 * V + 1, s.threshold, s.lm_weight)
        CTC = decoder.CriterionType.CTC
        if self._trie is None:
            options = decoder.LexiconFreeDecoderOptions(*beam, s.silence_score, s.log_add, CTC)
            return decoder.LexiconFreeDecoder(options, self._lm, V if separator is None else separator, BLANK, [])
        unknown = -inf if s.unknown_score is None else s.unknown_score
        options = decoder.LexiconDecoderOptions(*beam, s.word_score, unknown, s.silence_score, s.log_add, CTC)
        silence = 2 * V if separator is None else separator
        return decoder.LexiconDecoder(options, self._trie, self._lm, silence, BLANK, len(self.words), [], False)


def _validate(settings: JsonDict) -> BeamSettings:
    try:
        return BeamSettings(**settings)
    except ValidationError as error:
        raise UserError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())) from None


def _load_language_model(path: Path | None, words: list[str]) -> Any:
    try:
        from flashlight.lib.text.decoder import ZeroLM
        from flashlight.lib.text.decoder.kenlm import KenLM
        from flashlight.lib.text.dictionary import Dictionary
    except ImportError:
        raise UserError(
            "beam search needs flashlight-text: pip install data2vec[decode], on Python 3.11 or 3.12; greedy decoding does not"
        ) from None
    if path is None:
        return ZeroLM()
    dictionary = Dictionary()
    for i, word in enumerate(dict.fromkeys([*words, "<unk>"])):
        dictionary.add_entry(word, i)
    try:
        return KenLM(str(path), dictionary)
    except RuntimeError as error:
        raise UserError(f"lm: {path} is neither an ARPA file nor a KenLM binary: {error}") from None
