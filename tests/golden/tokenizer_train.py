"""Trains the small tokenizers of tests/fixtures/tokenizers/ with the `tokenizers` package (0.23.2).

Each has the layout of a family of published ones; the vocabularies are our own, trained on the
lines of tokenizer_lines.py. Run: python3 tests/golden/tokenizer_train.py tests/fixtures/tokenizers
"""
import json
import os
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pt
from tokenizers import processors, trainers

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tokenizer_lines import SENTENCES, lines  # noqa: E402

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CL100K = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
KIMI = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DEEPSEEK = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ONIGURUMA = r"(?<word>\w+\b)|\h{2,}|[[:punct:]]{,3}|\p{^L}\p{Letter}?|(?m:.)\S{2}?|[[a-f]&&[^b-c]]|\R|\x{1F600}|\u00e9"


def text():
    return [s.decode("utf-8", "replace") for s in lines()[:6000]] + SENTENCES * 20


def special(content, **flags):
    return AddedToken(content, special=True, normalized=flags.pop("normalized", False), **flags)


def train(tok, size, specials, alphabet=(), **model):
    tok.train_from_iterator(text(), trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=list(alphabet),
        limit_alphabet=400, show_progress=False, **model))
    return tok


def byte_level(size, steps, specials=("<|endoftext|>",), normalizer=None, **model):
    tok = Tokenizer(models.BPE(**model))
    if normalizer:
        tok.normalizer = normalizer
    tok.pre_tokenizer = pt.Sequence(steps) if len(steps) > 1 else steps[0]
    tok.decoder = decoders.ByteLevel()
    return train(tok, size, list(specials), pt.ByteLevel.alphabet())


def split(rx, behavior="isolated", invert=False):
    return pt.Split(Regex(rx), behavior, invert)


def raw_bytes():
    return pt.ByteLevel(add_prefix_space=False, use_regex=False)


def llama2(size, metaspace):
    """Trained on Metaspace words; the byte tokens join the vocabulary behind the specials."""
    byte_tokens = ["<0x%02X>" % b for b in range(256)]
    base = ["<unk>", "<s>", "</s>"]
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.pre_tokenizer = pt.Metaspace()
    train(tok, size, base + byte_tokens)
    doc = json.loads(tok.to_str())
    doc["added_tokens"] = [t for t in doc["added_tokens"] if t["content"] in base]
    tok = Tokenizer.from_str(json.dumps(doc))
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    tok.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0)])
    if metaspace is None:
        doc = json.loads(tok.to_str())
        doc["pre_tokenizer"] = None
        tok = Tokenizer.from_str(json.dumps(doc))
        tok.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tok.pre_tokenizer = metaspace
        if metaspace.split:
            tok.decoder = decoders.Metaspace()
    return tok


def all_of_them():
    yield "llama2-prepend", llama2(4000, None)
    yield "llama2-first", llama2(2000, pt.Metaspace(prepend_scheme="first", split=False))
    yield "llama2-always", llama2(2000, pt.Metaspace(prepend_scheme="always", split=True))

    tok = byte_level(1000, [split(LLAMA3), raw_bytes()], ignore_merges=True)
    tok.add_special_tokens([special("<|begin_of_text|>"), special("<|eot_id|>")])
    bos = tok.token_to_id("<|begin_of_text|>")
    tok.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A",
                                      special_tokens=[("<|begin_of_text|>", bos)])])
    yield "llama3", tok

    tok = byte_level(1000, [split(QWEN2), raw_bytes()], normalizer=normalizers.NFC())
    tok.add_special_tokens([special("<|im_start|>"), special("<|im_end|>")])
    tok.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    yield "qwen2", tok

    yield "tekken", byte_level(800, [split(TEKKEN), raw_bytes()])
    yield "o200k", byte_level(800, [split(O200K), raw_bytes()])
    yield "cl100k", byte_level(800, [split(CL100K, "removed", True), raw_bytes()])
    yield "kimi", byte_level(800, [split(KIMI), raw_bytes()])
    tok = byte_level(800, [split(r"\p{N}{1,3}"), split(r"[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK), raw_bytes()])
    tok.add_tokens([AddedToken("<｜User｜>", normalized=False), AddedToken("<|end|>")])
    yield "deepseek", tok
    yield "starcoder", byte_level(800, [pt.Digits(True), pt.ByteLevel(add_prefix_space=False)])
    yield "oniguruma", byte_level(500, [split(ONIGURUMA), raw_bytes()])

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pt.ByteLevel(add_prefix_space=True)
    tok.decoder = decoders.ByteLevel()
    train(tok, 900, ["<s>", "<pad>", "</s>", "<unk>"])
    tok.add_special_tokens([special("<mask>", lstrip=True)])
    tok.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=True)
    yield "roberta", tok  # and an alphabet that lacks bytes

    tok = Tokenizer(models.BPE(unk_token="<unk>"))
    tok.normalizer = normalizers.Sequence([
        normalizers.NFKC(), normalizers.Lowercase(), normalizers.StripAccents(),
        normalizers.Strip(), normalizers.Replace(Regex(r"\d+"), "0"), normalizers.Replace("''", "")])
    tok.pre_tokenizer = pt.Whitespace()
    train(tok, 900, ["<unk>", "[CLS]", "[SEP]"])
    tok.add_tokens([AddedToken("FOX", single_word=True), AddedToken("é", lstrip=True),
                    AddedToken("the", single_word=True, rstrip=True), AddedToken("ab")])
    tok.add_special_tokens([special("[MASK]", lstrip=True, rstrip=True), special("<s>", normalized=True)])
    tok.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    yield "flags", tok  # no decoder: spaces between tokens

    tok = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>", fuse_unk=True))
    tok.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])
    tok.pre_tokenizer = pt.BertPreTokenizer()
    tok.decoder = decoders.BPEDecoder("</w>")
    yield "suffix", train(tok, 900, ["<unk>"], end_of_word_suffix="</w>")

    tok = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
    tok.normalizer = normalizers.NFKD()
    tok.pre_tokenizer = pt.Sequence([
        pt.WhitespaceSplit(), pt.Punctuation("merged_with_previous"), pt.Digits(False)])
    tok.decoder = decoders.Sequence([decoders.Replace(Regex("^##"), ""), decoders.Fuse()])
    yield "prefix", train(tok, 900, ["<unk>"], continuing_subword_prefix="##")

    yield "splits", byte_level(600, [
        split(r"[.,]", "merged_with_next"), split(r"\d", "contiguous"), split(r"\s+", "removed"),
        split(r"[A-Z]", "merged_with_previous"), split(r"[aeiou]+|", "isolated", True),
        pt.Split("th", "merged_with_previous"), pt.CharDelimiterSplit("_"),
        pt.Punctuation("contiguous"), pt.ByteLevel(add_prefix_space=True, use_regex=True)])


if __name__ == "__main__":
    for name, tok in all_of_them():
        doc = json.loads(tok.to_str())
        os.makedirs(os.path.join(sys.argv[1], name), exist_ok=True)
        with open(os.path.join(sys.argv[1], name, "tokenizer.json"), "w") as f:
            json.dump(doc, f, ensure_ascii=False, separators=(",", ":"))
            f.write("\n")
