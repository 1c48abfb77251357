#!/usr/bin/env python3
"""Tests of the converter against torch, sentencepiece and tokenizers, which it does without.

    pip install torch sentencepiece tokenizers safetensors
    python3 tools/convert/test_convert.py
"""

import io
import json
import os
import pickle
import sys
import tempfile
import unittest
import zipfile

import safetensors.torch
import sentencepiece
import tokenizers
import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import spm_tokenizer
import to_safetensors
import torch_bin

TEXTS = ["Hello world", " two  spaces ", "naïve café, 東京 🙂", "a\nb\tc", "", "   ", "the",
         "1234567890", "int main(void) { return 0; }", "ünïcödé ▁ underline"]


def write_config(folder, **config):
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f)


class Weights(unittest.TestCase):
    def setUp(self):
        self.tmp = tempfile.TemporaryDirectory()
        self.dir = self.tmp.name

    def tearDown(self):
        self.tmp.cleanup()

    def check(self, state, tied=False, dropped=()):
        write_config(self.dir, tie_word_embeddings=tied)
        torch.save(state, os.path.join(self.dir, "pytorch_model.bin"))
        self.assertEqual(to_safetensors.convert(self.dir, self.dir), ["weights"])
        got = safetensors.torch.load_file(os.path.join(self.dir, "model.safetensors"))
        self.assertEqual(set(got), set(state) - set(dropped))
        for name, t in got.items():
            self.assertEqual(t.dtype, state[name].dtype)
            self.assertTrue(torch.equal(t, state[name]), name)

    def test_every_dtype(self):
        self.check({str(d): torch.arange(12).reshape(3, 4).to(d) for d in (
            torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool,
            torch.uint8)})

    def test_views(self):
        base = torch.randn(6, 8)
        self.check({"whole": base, "transposed": base.t(), "rows": base[2:4], "columns": base[:, 1:5],
                    "scalar": base[1, 1], "empty": base[:0], "step": base[::2, ::3],
                    "expanded": base[:1].expand(3, 8)})

    def test_parameters(self):
        state = torch.nn.Linear(3, 5).state_dict()
        state["p"] = torch.nn.Parameter(torch.randn(2, 2))
        self.check(state)

    def test_tied_head_is_dropped(self):
        w = torch.randn(5, 4)
        state = {"model.embed_tokens.weight": w, "lm_head.weight": w}
        self.check(state, tied=True, dropped=["lm_head.weight"])

    def test_tied_head_that_differs_is_kept(self):
        self.check({"model.embed_tokens.weight": torch.randn(5, 4),
                    "lm_head.weight": torch.randn(5, 4)}, tied=True)

    def test_shards(self):
        write_config(self.dir)
        a, b = {"x": torch.randn(3)}, {"y": torch.randn(4).bfloat16()}
        torch.save(a, os.path.join(self.dir, "pytorch_model-1.bin"))
        torch.save(b, os.path.join(self.dir, "pytorch_model-2.bin"))
        with open(os.path.join(self.dir, to_safetensors.INDEX), "w") as f:
            json.dump({"weight_map": {"x": "pytorch_model-1.bin", "y": "pytorch_model-2.bin"}}, f)
        out = os.path.join(self.dir, "out")
        to_safetensors.convert(self.dir, out)
        with open(os.path.join(out, "model.safetensors.index.json")) as f:
            index = json.load(f)
        self.assertEqual(index["metadata"]["total_size"], 20)
        got = safetensors.torch.load_file(os.path.join(out, index["weight_map"]["y"]))
        self.assertTrue(torch.equal(got["y"], b["y"]))
        self.assertTrue(os.path.exists(os.path.join(out, "config.json")))

    def test_hostile_pickle_is_refused(self):
        class Evil:
            def __reduce__(self):
                return os.system, ("echo pwned",)

        path = os.path.join(self.dir, "x.bin")
        with zipfile.ZipFile(path, "w") as z:
            z.writestr("archive/data.pkl", pickle.dumps({"w": Evil()}))
        with self.assertRaisesRegex(ValueError, "system, which no state dict needs"):
            torch_bin.BinFile(path)

    def test_old_format_is_refused(self):
        path = os.path.join(self.dir, "x.bin")
        torch.save({"w": torch.zeros(1)}, path, _use_new_zipfile_serialization=False)
        with self.assertRaisesRegex(ValueError, "before 1.6"):
            torch_bin.BinFile(path)


class Tokenizer(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.tmp = tempfile.TemporaryDirectory()
        with open(spm_tokenizer.__file__, encoding="utf-8") as f:
            corpus = f.read() * 3 + "\n".join(TEXTS)
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus.split("\n")), model_writer=model, vocab_size=700,
            model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
            remove_extra_whitespaces=False, character_coverage=0.99,
            user_defined_symbols=["<|im_start|>"], minloglevel=2)
        cls.model = model.getvalue()
        with open(os.path.join(cls.tmp.name, "tokenizer.model"), "wb") as f:
            f.write(cls.model)
        cls.spm = sentencepiece.SentencePieceProcessor(model_proto=cls.model)

    @classmethod
    def tearDownClass(cls):
        cls.tmp.cleanup()

    def load(self, **config):
        with open(os.path.join(self.tmp.name, "tokenizer_config.json"), "w") as f:
            json.dump(config, f)
        return tokenizers.Tokenizer.from_str(json.dumps(spm_tokenizer.convert(self.tmp.name)))

    def test_encodes_as_sentencepiece(self):
        tok = self.load(add_bos_token=False)
        with open(spm_tokenizer.__file__, encoding="utf-8") as f:
            # Special tokens are matched in text, as tokenizers does; SentencePiece spells them.
            texts = TEXTS + [line for line in f.read().split("\n") if "<" not in line]
        for text in texts:
            self.assertEqual(tok.encode(text).ids, self.spm.encode(text), repr(text))

    def test_decodes_as_sentencepiece(self):
        tok = self.load(add_bos_token=False)
        for text in TEXTS:
            ids = self.spm.encode(text)
            self.assertEqual(tok.decode(ids), self.spm.decode(ids), repr(text))

    def test_bos_and_eos(self):
        self.assertEqual(self.load().encode("the").ids[0], self.spm.bos_id())
        ids = self.load(add_eos_token=True).encode("the").ids
        self.assertEqual((ids[0], ids[-1]), (self.spm.bos_id(), self.spm.eos_id()))

    def test_not_legacy_puts_one_space_in_front(self):
        tok = self.load(legacy=False, add_bos_token=False)
        for text in (t for t in TEXTS if not t.startswith(" ")):
            self.assertEqual(tok.encode(text).ids, self.spm.encode(text), repr(text))
        n = self.spm.vocab_size()
        tok = self.load(legacy=False, add_bos_token=False, added_tokens_decoder={
            str(n): {"content": "<sep>", "special": True}})
        pieces = tok.encode("the<sep>the").tokens
        self.assertEqual("".join(pieces), "\u2581the<sep>the")

    def test_added_tokens(self):
        n = self.spm.vocab_size()
        tok = self.load(added_tokens_decoder={str(n): {"content": "<pad>", "special": True}})
        self.assertEqual(tok.token_to_id("<pad>"), n)
        self.assertEqual(tok.encode("a<pad>").ids[-1], n)

    def test_cut_file_is_refused(self):
        for cut in (1, 10, 1000):
            with open(os.path.join(self.tmp.name, "cut"), "wb") as f:
                f.write(self.model[:-cut])
            with self.assertRaises(ValueError):
                spm_tokenizer.SpmModel(os.path.join(self.tmp.name, "cut"))

    def test_unigram_is_refused(self):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["some words here"] * 9), model_writer=model, vocab_size=12,
            model_type="unigram", minloglevel=2)
        with open(os.path.join(self.tmp.name, "uni"), "wb") as f:
            f.write(model.getvalue())
        with self.assertRaisesRegex(ValueError, "not a BPE model"):
            spm_tokenizer.SpmModel(os.path.join(self.tmp.name, "uni"))


if __name__ == "__main__":
    unittest.main()
