"""Turns a SentencePiece tokenizer.model of the Llama kind (BPE) into a tokenizer.json.

The file is a protocol buffer; the handful of its fields that matter are read here by hand:

    1  pieces            1 text, 2 score, 3 type
    2  trainer_spec      3 model_type (1 unigram, 2 BPE), 35 byte_fallback
    3  normalizer_spec   2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces

SentencePiece merges the pair whose joint piece has the best score; tokenizers merges by a list. The
list is every way to cut a piece into two pieces, best score first.
"""

import json
import os
import struct

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNDERLINE = "\u2581"  # stands for a space inside pieces


def varint(data, at):
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("tokenizer.model: cut short or no protocol buffer")
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return value, at


def fields(data):
    """Yields (number, value) of one message: int, 4 or 8 bytes, or a byte string."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, at = data[at:at + size], at + size
        elif wire == 2:
            size, at = varint(data, at)
            value, at = data[at:at + size], at + size
        else:
            raise ValueError(f"tokenizer.model: wire type {wire} is not known")
        if at > len(data):
            raise ValueError("tokenizer.model: cut short")
        yield number, value


def read_piece(data):
    text, score, kind = "", 0.0, NORMAL
    for number, value in fields(data):
        if number == 1:
            text = value.decode("utf-8")
        elif number == 2:
            (score,) = struct.unpack("<f", value)
        elif number == 3:
            kind = value
    return text, score, kind


class SpmModel:
    def __init__(self, path):
        with open(path, "rb") as f:
            data = f.read()
        self.pieces = []  # (text, score, type); the index is the id
        trainer, normalizer = {}, {}
        for number, value in fields(data):
            if number == 1:
                self.pieces.append(read_piece(value))
            elif number == 2:
                trainer = dict(fields(value))
            elif number == 3:
                normalizer = dict(fields(value))
        if trainer.get(3, 1) != 2:
            raise ValueError(f"{path}: not a BPE model, and no other kind is served")
        if normalizer.get(2):
            raise ValueError(f"{path}: has a character map of its own, which is not converted")
        self.byte_fallback = bool(trainer.get(35, 0))
        self.add_dummy_prefix = bool(normalizer.get(3, 1))
        if normalizer.get(4, 1):
            # The Llama family never squeezes spaces; a model that does would need another rule.
            raise ValueError(f"{path}: removes extra spaces, which is not converted")
        self.ids = {text: i for i, (text, _, _) in enumerate(self.pieces)}

    def merges(self):
        out = []
        for text, score, kind in self.pieces:
            if kind not in (NORMAL, USER_DEFINED, UNUSED):
                continue
            for cut in range(1, len(text)):
                left, right = text[:cut], text[cut:]
                if left in self.ids and right in self.ids:
                    out.append((-score, -len(left), -len(right), self.ids[left], self.ids[right],
                                left, right))
        out.sort()
        return [[left, right] for *_, left, right in out]

    def first(self, kind):
        return next((t for t, _, k in self.pieces if k == kind), None)


def read_json(folder, name):
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def added_token(token_id, content, special, **flags):
    return {"id": token_id, "content": content, "single_word": flags.get("single_word", False),
            "lstrip": flags.get("lstrip", False), "rstrip": flags.get("rstrip", False),
            "normalized": flags.get("normalized", False), "special": special}


def added_tokens(folder, spm, config):
    """Control pieces, what tokenizer_config.json describes, and what added_tokens.json adds."""
    out = {}
    for i, (text, _, kind) in enumerate(spm.pieces):
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            out[i] = added_token(i, text, kind != USER_DEFINED)
    for content, i in read_json(folder, "added_tokens.json").items():
        out.setdefault(i, added_token(i, content, content.startswith("<")))
    for key, token in config.get("added_tokens_decoder", {}).items():
        out[int(key)] = added_token(int(key), token["content"], token.get("special", False), **{
            k: token[k] for k in ("single_word", "lstrip", "rstrip", "normalized") if k in token})
    return [out[i] for i in sorted(out)]


def token_text(value):
    return value.get("content") if isinstance(value, dict) else value


def post_processor(spm, config, tokens):
    """<s> in front unless the configuration says no, </s> behind if it says so."""
    ids = {t["content"]: t["id"] for t in tokens}
    bos = token_text(config.get("bos_token")) or "<s>"
    eos = token_text(config.get("eos_token")) or "</s>"
    single, pair, special = [], [], {}

    def put(template, text, type_id):
        if text not in ids:
            return
        template.append({"SpecialToken": {"id": text, "type_id": type_id}})
        special[text] = {"id": text, "ids": [ids[text]], "tokens": [text]}

    for template, names in ((single, "A"), (pair, "AB")):
        for type_id, name in enumerate(names):
            if config.get("add_bos_token", True):
                put(template, bos, type_id)
            template.append({"Sequence": {"id": name, "type_id": type_id}})
            if config.get("add_eos_token", False):
                put(template, eos, type_id)
    if not special:
        return None
    return {"type": "TemplateProcessing", "single": single, "pair": pair,
            "special_tokens": special}


def convert(folder):
    """The tokenizer.json of a directory with a tokenizer.model, as a dict."""
    spm = SpmModel(os.path.join(folder, "tokenizer.model"))
    config = read_json(folder, "tokenizer_config.json")
    tokens = added_tokens(folder, spm, config)
    prefix = spm.add_dummy_prefix and config.get("add_prefix_space", True) is not False
    normalizer = pre_tokenizer = None
    if config.get("legacy", True) is False:
        # Only the beginning of a text gets the extra space, what follows a special token does not.
        pre_tokenizer = {"type": "Metaspace", "replacement": UNDERLINE, "split": False,
                         "prepend_scheme": "first" if prefix else "never"}
    else:
        steps = [{"type": "Prepend", "prepend": UNDERLINE}] if prefix else []
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": UNDERLINE})
        normalizer = {"type": "Sequence", "normalizers": steps}
    decoders = [{"type": "Replace", "pattern": {"String": UNDERLINE}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens,
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor(spm, config, tokens),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "dropout": None, "unk_token": spm.first(UNKNOWN),
                  "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
                  "byte_fallback": spm.byte_fallback, "ignore_merges": False,
                  "vocab": spm.ids, "merges": spm.merges()},
    }
