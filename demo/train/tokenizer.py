"""The demo model's tokenizer: Qwen2's kind, trained on the demo's own text."""

from collections.abc import Iterator

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from ...runtime.prompt import question_text
from ..questions import TYPES, ask, draw_facts, response

# Rows of the embedding table; the text has few enough words that some rows stay unused, as in Qwen2-VL's own.
VOCABULARY = 1088
# Qwen2-VL's, in the order of its vocabulary, at whose end they are.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# How Qwen2's tokenizer.json cuts text into the pieces within which it merges.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHAT = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|im_start|>assistant\n"


def train_tokenizer(texts: int = 4000) -> Tokenizer:
    """A byte-level BPE of at most `VOCABULARY` tokens, trained on `texts` questions with their answers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_texts(texts), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def _texts(count: int) -> Iterator[str]:
    rng = np.random.default_rng(0)
    yield _CHAT.replace("<|im_start|>", "").replace("<|im_end|>", "")
    for i in range(count):
        question_type = TYPES[i % len(TYPES)]
        facts = draw_facts(rng, question_type)
        question = ask(rng, facts, question_type)
        yield question_text(question.problem, raw=False)
        yield response(rng, facts, question)
