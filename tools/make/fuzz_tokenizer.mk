# What tests/fuzz/fuzz_tokenizer.c needs beside base/; the rules are in fuzz.mk.
FUZZ_SRC_tokenizer = $(wildcard engine/tokenizer/*.c)
FUZZ_SRC_chat_template = $(wildcard engine/tokenizer/*.c)
