# The server without a model: benches of the front-end, and bytes from a fuzzer through its sockets.

NULL_SERVER_SRC := $(filter-out server/cli.c server/cli_%.c server/main.c,$(wildcard server/*.c))
NULL_OBJ := $(BASE_SRC:%.c=$(OBJ)/%.o) $(CONFIG_SRC:%.c=$(OBJ)/%.o) $(NULL_SERVER_SRC:%.c=$(OBJ)/%.o) \
    $(OBJ)/engine/outbox.o $(OBJ)/tests/null/null_engine.o $(OBJ)/tests/null/null_main.o

$(BIN)/spand-null: $(NULL_OBJ)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(BIN)/bare-send: tests/null/bare_send.c
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -o $@ $<

FUZZ_SRC_http = $(CONFIG_SRC) $(NULL_SERVER_SRC) engine/outbox.c tests/null/null_engine.c

BENCH_SECONDS ?= 5
SOAK_SECONDS ?= 3600
IDLE_CONNECTIONS ?= 10000
SLOW_SECONDS ?= 20

.PHONY: bench-frontend soak test-scale test-slow test-stalled test-null
bench-frontend: $(BIN)/spand-null $(BIN)/bare-send ## events a second and added latency of the HTTP side alone
	$(PYTHON) tests/null/bench_frontend.py $(BIN)/spand-null $(BENCH_SECONDS)

soak: $(BIN)/spand ## SOAK_SECONDS at saturation with cancels, slow readers and disconnects
	$(PYTHON) tests/e2e/soak.py $(BIN)/spand $(SOAK_SECONDS)

test-scale: $(BIN)/spand-null ## IDLE_CONNECTIONS idle connections and 1,000 streams on one loop
	$(PYTHON) tests/null/scale.py $(BIN)/spand-null $(IDLE_CONNECTIONS)

test-slow: $(BIN)/spand-null ## slowhttptest from one address must not keep others waiting
	$(PYTHON) tests/null/slow.py $(BIN)/spand-null $(SLOW_SECONDS)

test-stalled: $(BIN)/spand-null ## clients that stop reading in the middle of a stream and go on, or not
	$(PYTHON) tests/null/stalled.py $(BIN)/spand-null

test-null: $(BIN)/spand-null ## the bad inputs against the server alone, for SAN=address and SAN=thread
	@sh tests/e2e/run.sh $(BIN)/spand-null test_bad_input.py
