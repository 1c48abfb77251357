# What is generated from the table of settings. tests/config fails when it is stale.

DOCS_OBJ = $(BASE_SRC:%.c=$(OBJ)/%.o) $(CONFIG_SRC:%.c=$(OBJ)/%.o)

$(BIN)/config-docs: $(OBJ)/tools/config_docs.o $(DOCS_OBJ)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -o $@ $(OBJ)/tools/config_docs.o $(DOCS_OBJ) $(shell pkg-config --libs jansson) -lpthread -lm

docs: $(BIN)/config-docs ## write config/CONFIG.md and config/default.json from the table of settings
	$(BIN)/config-docs markdown > config/CONFIG.md
	$(BIN)/config-docs json > config/default.json
