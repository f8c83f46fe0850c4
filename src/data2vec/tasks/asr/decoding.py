"""The decoder that the settings ask for: logits of a CTC head to text."""

from data2vec.recipe.task_settings import BeamSettings, CTCDecodingSettings
from data2vec.tasks.asr.beam_search import BeamSearch
from data2vec.tasks.asr.greedy import GreedyDecoder
from data2vec.tasks.asr.vocabulary import CTCVocabulary

Decoder = GreedyDecoder | BeamSearch


def build_ctc_decoder(vocabulary: CTCVocabulary, settings: CTCDecodingSettings) -> Decoder:
    """A beam search if the settings name a language model or a lexicon, otherwise a greedy decoder.

    Raises UserError as `BeamSearch` does."""
    if settings.lm is None and settings.lexicon is None:
        return GreedyDecoder(vocabulary)
    weights = {key: value for key, value in settings if key in BeamSettings.model_fields}
    return BeamSearch(vocabulary, settings.lm, settings.lexicon, **weights)
