# What is generated from the table of settings. tests/config fails when it is stale.

DOCS_OBJ = $(BASE_SRC:%.c=$(OBJ)/%.o) $(CONFIG_SRC:%.c=$(OBJ)/%.o)

$(BIN)/config-docs: $(OBJ)/tools/config_docs.o $(DOCS_OBJ)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -o $@ $(OBJ)/tools/config_docs.o $(DOCS_OBJ) $(shell pkg-config --libs jansson) -lpthread -lm

$(BIN)/metrics-docs: $(OBJ)/tools/metrics_docs.o $(SERVER_OBJ) $(CORE_OBJ)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) $(CUDA_LIBS)

docs: $(BIN)/config-docs $(BIN)/metrics-docs ## write CONFIG.md, default.json and METRICS.md from their tables
	$(BIN)/metrics-docs > server/METRICS.md
	$(BIN)/config-docs markdown > config/CONFIG.md
	$(BIN)/config-docs json > config/default.json
