# Fuzzing: `make fuzz-config FUZZ_SECONDS=60` runs tests/fuzz/fuzz_config.c under libFuzzer with
# ASan and UBSan. Every tests/fuzz/fuzz_NAME.c gives a target fuzz-NAME; it starts from
# tests/fuzz/corpus/NAME, and FUZZ_SRC_NAME lists the sources that it needs beside base/.
#
# What it finds stays out of the tree: new inputs in $(BUILD)/fuzz/corpus, crashes in
# $(BUILD)/fuzz/NAME-*. A crash worth keeping becomes a file of the corpus folder and a test.

FUZZ_CC ?= clang
FUZZ_SECONDS ?= 30
FUZZ_FLAGS = -O1 -g -fno-omit-frame-pointer -ffp-contract=off -fsanitize=fuzzer,address,undefined \
    -fno-sanitize-recover=undefined
FUZZ_NAMES := $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c))

FUZZ_SRC_config = $(CONFIG_SRC)

# Further arguments of libFuzzer; -seed=1 -runs=N makes a run that finds the same every time.
FUZZ_ARGS ?=

# Inputs longer than this teach nothing new about the parsers and halve the speed.
FUZZ_MAX_LEN ?= 4096

.PHONY: fuzz $(FUZZ_NAMES:%=fuzz-%)

fuzz: $(FUZZ_NAMES:%=fuzz-%) ## fuzz every parser for FUZZ_SECONDS each; fuzz-NAME for one

.SECONDEXPANSION:
$(FUZZ_NAMES:%=$(BUILD)/fuzz/%): $(BUILD)/fuzz/%: tests/fuzz/fuzz_%.c $$(BASE_SRC) $$(FUZZ_SRC_$$*)
	$(call say,FUZZ,$@)
	@mkdir -p $(@D)
	$(Q)$(FUZZ_CC) $(filter-out -DSPAND_CUDA=1,$(CPPFLAGS)) -std=c11 $(FUZZ_FLAGS) -o $@ $(filter %.c,$^) $(PKG_LIBS) -lpthread -lm

# A target that cannot be built here is skipped aloud: CI without clang still runs `make fuzz`.
$(FUZZ_NAMES:%=fuzz-%): fuzz-%:
	@if ! printf 'int LLVMFuzzerTestOneInput(const unsigned char *d, long n);int LLVMFuzzerTestOneInput(const unsigned char *d, long n) { return d && n < 0; }' \
	    | $(FUZZ_CC) -x c -fsanitize=fuzzer,address -o /dev/null - 2>/dev/null; then \
	    echo "fuzz-$*: skipped, $(FUZZ_CC) has no -fsanitize=fuzzer,address here (Debian: clang libclang-rt-14-dev)"; \
	else \
	    $(MAKE) --no-print-directory $(BUILD)/fuzz/$* && mkdir -p $(BUILD)/fuzz/corpus/$* tests/fuzz/corpus/$* && \
	    $(BUILD)/fuzz/$* -max_total_time=$(FUZZ_SECONDS) -max_len=$(FUZZ_MAX_LEN) -print_final_stats=1 -verbosity=0 $(FUZZ_ARGS) \
	        -artifact_prefix=$(BUILD)/fuzz/$*- $(BUILD)/fuzz/corpus/$* tests/fuzz/corpus/$*; \
	fi
