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
