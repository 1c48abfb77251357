# What tests/fuzz/fuzz_plan.c needs beside base/; the rules are in fuzz.mk.
FUZZ_SRC_plan = $(wildcard engine/plan/*.c) engine/kv/kv_layout.c engine/model/json_fields.c
