"""Small tokenizers of the kinds that models have, trained on a few lines."""

import json

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as FastTokenizer

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "a stop here, a stop there; stopping is not stop",
    "Grüße aus Köln: naïve café, 東京 and 🙂🙃 smile",
] * 4
SPECIAL = ["<pad>", "<s>", "</s>"]


def byte_level(vocabulary: int = 340) -> str:
    """tokenizer.json of a byte-level BPE, as GPT-2, Llama 3 and SmolLM2 have it."""
    tokenizer = FastTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return str(tokenizer.to_str())


def byte_fallback(vocabulary: int = 340) -> str:
    """tokenizer.json of a BPE over spaces written as ▁ that falls back to bytes, as Llama 2 and Gemma have it."""
    trainer = trainers.BpeTrainer(vocab_size=vocabulary - 256, special_tokens=SPECIAL)
    trained = FastTokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator([line for line in CORPUS if line.isascii()], trainer)
    model = json.loads(trained.to_str())["model"]
    vocabulary_size = len(model["vocab"])
    for byte in range(256):
        model["vocab"][f"<0x{byte:02X}>"] = vocabulary_size + byte
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = FastTokenizer(models.BPE(vocab=model["vocab"], merges=merges, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return str(tokenizer.to_str())
