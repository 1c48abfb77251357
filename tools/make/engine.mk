# Engine: the scramble check.

SCRAMBLE_OBJ := $(OBJ)/tests/scramble/scramble.o $(OBJ)/tests/engine/engine_fixture.o
SCRAMBLE_MODEL ?= $(if $(wildcard models/demo-llama/model*.safetensors),models/demo-llama,tests/fixtures/engine/tiny)
SCRAMBLE_PLAN ?= dense
SCRAMBLE_REQUESTS ?= 256

$(BIN)/spand-scramble: $(SCRAMBLE_OBJ) $(CORE_OBJ)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) $(CUDA_LIBS)

test-scramble: $(BIN)/spand-scramble ## 256 requests alone and in a crowd: the same tokens
	$(BIN)/spand-scramble $(SCRAMBLE_MODEL) $(SCRAMBLE_PLAN) $(SCRAMBLE_REQUESTS)
	$(BIN)/spand-scramble tests/fixtures/engine/tiny tests/fixtures/engine/mixed-spans.json $(SCRAMBLE_REQUESTS)
	$(BIN)/spand-scramble models/demo-block dense $(SCRAMBLE_REQUESTS) 8

SOAK_REQUESTS ?= 10000

test-soak: $(BIN)/spand-tests ## 10,000 requests and random cancels, every page checked after every step
	SPAND_SOAK_REQUESTS=$(SOAK_REQUESTS) CK_RUN_SUITE=engine_soak $(BIN)/spand-tests

.PHONY: test-soak
