# The load generator's parsers are tested and fuzzed like the daemon's own. Their tests lie below
# tests/bench, whose files go into spand-bench, so the two that they need are named here.

BENCH_HTTP_PARSERS := tests/bench/http_response.c tests/bench/sse_reader.c

TEST_OBJ += $(BENCH_HTTP_PARSERS:%.c=$(OBJ)/%.o) \
    $(patsubst %.c,$(OBJ)/%.o,$(wildcard tests/bench/unit/*.c))
FUZZ_SRC_http_client = $(BENCH_HTTP_PARSERS)
